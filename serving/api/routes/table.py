"""The one table of the tasks' routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.api.routes import clip, embed, rerank
from serving.api.routes.base import Post, TaskRoutes

ROUTES: Mapping[str, TaskRoutes[Any]] = {"embed": embed.ROUTES, "rerank": rerank.ROUTES, "clip": clip.ROUTES}


def posts_of(task: str | None) -> dict[str, Post[Any]]:
    """path -> route of a task; None: of all, each as the first task of the table answers it."""
    posts: dict[str, Post[Any]] = {}
    for routes in ROUTES.values() if task is None else (ROUTES[task],):
        for post in routes.posts:
            posts.setdefault(post.path, post)
    return posts


POSTS: Mapping[str, Mapping[str, Post[Any]]] = {task: posts_of(task) for task in ROUTES}
PATHS = frozenset(posts_of(None))
