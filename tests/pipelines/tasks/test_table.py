"""The table of tasks: each row names code that is there, rules with thresholds, and labels that show them."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from pipelines.gate.thresholds import EVERY_TASK, Thresholds
from pipelines.measure.base import Measure
from pipelines.tasks.base import Recipe, Task, resolve
from pipelines.tasks.table import TASKS
from serving.contract.profile import Precision
from serving.tasks.table import TASKS as SERVED

EACH = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def parameters(function: Callable[..., object]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_factory_and_the_server_know_the_same_tasks() -> None:
    assert TASKS.keys() == SERVED.keys()


@EACH
def test_a_row_names_a_recipe_a_measure_and_a_demo_that_are_there(task: Task) -> None:
    recipe = resolve(task.recipe)
    for name in ("to_onnx", "answers", "calibration"):
        assert parameters(getattr(recipe, name)) == parameters(getattr(Recipe, name)), f"{task.recipe}.{name}"
    assert isinstance(resolve(task.measure), Measure)
    assert parameters(resolve(task.demo)) == ["console", "url", "folder"]


@EACH
def test_a_task_is_judged_by_its_own_thresholds_and_by_those_of_every_task(task: Task) -> None:
    own = {*task.rules.thresholds, *EVERY_TASK}
    assert task.thresholds.keys() == set(Precision)
    for precision, thresholds in task.thresholds.items():
        others = {name: value for name, value in vars(thresholds).items() if name not in own and value is not None}
        assert not others, precision
    assert own <= set(inspect.signature(Thresholds).parameters)
    assert task.required_keys <= task.model_keys


@EACH
def test_labels_of_a_row_that_was_not_measured_show_nothing(task: Task) -> None:
    labels = task.labels
    assert {column.of({}) for column in labels.columns} <= {"–", "– %"}
    assert (labels.loss_of({}), labels.losses({}), labels.num_golden({}), labels.labelled({})) == (None, (), 0, None)
    checks = {rule.name for rule in task.rules.figures} | {task.rules.drop.name}
    assert {column.check for column in labels.columns if column.check} <= checks
    assert labels.saturated.keys() == labels.single.keys()


def test_a_labelled_set_is_told_by_whichever_task_judged_on_it() -> None:
    ranking = {
        "set": "stdlib-docstrings",
        "num_queries": 512,
        "num_passages": 500,
        "reference_ndcg_at_10": 0.7,
        "first_stage": "bm25",
        "first_stage_ndcg_at_10": 0.6,
    }
    found = TASKS["rerank"].labels.labelled({"retrieval": ranking})
    assert found is not None
    assert (found.baseline, found.baseline_name, found.num_choices) == (0.6, "BM25", 500)
    shown = {"set": "pictures", "num_images": 540, "num_classes": 60, "reference_top1": 0.95}
    found = TASKS["clip"].labels.labelled({"zero_shot": shown})
    assert found is not None
    assert (found.num_items, found.baseline, found.baseline_name) == (540, 1 / 60, "chance")
    assert all(task.labels.labelled({}) is None for task in TASKS.values())


def test_how_far_answers_moved_is_a_cosine_or_an_error_of_a_logit() -> None:
    assert TASKS["embed"].labels.losses({"cosine": {"values": [1.0, 0.75]}}) == (0.0, 0.25)
    assert TASKS["rerank"].labels.losses({"scores": {"golden": [2.0, -1.0], "found": [1.5, -0.5]}}) == (0.5, 0.5)
    assert TASKS["rerank"].labels.losses({"scores": {"num_pairs": 2}}) == ()
