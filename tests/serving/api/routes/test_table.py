"""The table of routes: a row for each task, found by the path that a client asks for."""

from __future__ import annotations

import pytest

from serving.api.routes.table import PATHS, POSTS, ROUTES, posts_of
from serving.tasks.table import TASKS


def test_every_task_has_a_row_of_routes_and_every_row_a_task() -> None:
    assert set(ROUTES) == set(TASKS)
    assert all(routes.posts for routes in ROUTES.values())


@pytest.mark.parametrize("task", TASKS)
def test_a_path_leads_to_its_own_route(task: str) -> None:
    assert [post.path for post in POSTS[task].values()] == list(POSTS[task])
    assert set(POSTS[task]) <= PATHS


def test_operations_of_one_document_are_named_apart() -> None:
    operations = [post.operation for post in posts_of(None).values()]
    assert len(set(operations)) == len(operations)
