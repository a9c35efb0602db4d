"""Which step may start when: after its inputs, a number at a time, and alone where it measures time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter

from pipelines.plan.graph import Step


class Schedule:
    """The order of a build. `build` runs by it, `plan` estimates by it. It is true while a step is not finished.

    steps: by id, each after those it takes from. A step that is taken from and is not among them counts as finished.
    """

    def __init__(self, steps: Mapping[str, Step], jobs: int) -> None:
        self._steps, self._jobs = tuple(steps.values()), jobs
        self._position = {step_id: position for position, step_id in enumerate(steps)}
        self._sorter = TopologicalSorter(
            {step.id: {ref.step for ref in step.inputs.values() if ref.step in steps} for step in self._steps}
        )
        self._sorter.prepare()
        self._waiting: set[int] = set()
        self.running: dict[str, Step] = {}

    def __bool__(self) -> bool:
        return self._sorter.is_active()

    def ready(self) -> Iterator[Step]:
        """The steps whose inputs are finished and that did not start, in order; also those that become so meanwhile."""
        heap = list(self._waiting)
        heapq.heapify(heap)
        while True:
            for step_id in self._sorter.get_ready():
                self._waiting.add(self._position[step_id])
                heapq.heappush(heap, self._position[step_id])
            if not heap:
                return
            yield self._steps[heapq.heappop(heap)]

    def may_start(self, step: Step) -> bool:
        alone = step.exclusive or any(other.exclusive for other in self.running.values())
        return len(self.running) < self._jobs and not (alone and self.running)

    def start(self, step: Step) -> None:
        self._waiting.remove(self._position[step.id])
        self.running[step.id] = step

    def finish(self, step: Step) -> None:
        """A step that ran, or that need not run."""
        self.running.pop(step.id, None)
        self._waiting.discard(self._position[step.id])
        self._sorter.done(step.id)
