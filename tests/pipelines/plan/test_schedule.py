"""The order in which steps may start, for a build and for the estimate of one."""

from __future__ import annotations

from pipelines.plan.graph import Ref, Step
from pipelines.plan.schedule import Schedule


def step(name: str, *needs: str, exclusive: bool = False) -> Step:
    stage, _, subject = name.partition("/")
    inputs = {need: Ref(step=need, output="x") for need in needs}
    return Step(stage=stage, subject=subject, params={}, inputs=inputs, toolchain={}, code={}, exclusive=exclusive)


def schedule_of(*steps: Step, jobs: int) -> Schedule:
    return Schedule({each.id: each for each in steps}, jobs)


def start(schedule: Schedule) -> list[str]:
    """Start every step that may start now."""
    started = []
    for each in schedule.ready():
        if schedule.may_start(each):
            schedule.start(each)
            started.append(each.id)
    return started


def finish(schedule: Schedule, name: str) -> None:
    schedule.finish(schedule.running[name])


def test_a_step_starts_after_those_it_takes_from_and_so_many_at_a_time() -> None:
    schedule = schedule_of(step("a/1"), step("b/1", "a/1"), step("b/2", "a/1"), step("b/3", "a/1"), jobs=2)
    assert start(schedule) == ["a/1"]
    assert start(schedule) == []
    finish(schedule, "a/1")
    assert start(schedule) == ["b/1", "b/2"]
    finish(schedule, "b/2")
    assert start(schedule) == ["b/3"]
    finish(schedule, "b/1")
    assert schedule
    finish(schedule, "b/3")
    assert not schedule


def test_what_measures_time_runs_alone() -> None:
    schedule = schedule_of(step("a/1"), step("m/1", exclusive=True), step("a/2"), jobs=4)
    assert start(schedule) == ["a/1", "a/2"]
    finish(schedule, "a/1")
    assert start(schedule) == []
    finish(schedule, "a/2")
    assert start(schedule) == ["m/1"]


def test_a_step_that_need_not_run_frees_those_that_take_from_it_in_the_same_pass() -> None:
    schedule = schedule_of(step("a/1"), step("b/1", "a/1"), step("c/1", "b/1"), jobs=1)
    names = []
    for each in schedule.ready():
        names.append(each.id)
        schedule.finish(each)
    assert names == ["a/1", "b/1", "c/1"]
    assert not schedule


def test_a_step_of_another_plan_counts_as_finished() -> None:
    assert start(schedule_of(step("b/1", "a/1"), jobs=1)) == ["b/1"]
