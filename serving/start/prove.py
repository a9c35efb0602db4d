"""Compare loaded engines with their golden outputs: the last thing before ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.errors import ProofFailed
from serving.tasks.base import Item, Spec, Tower
from serving.tasks.golden import ProofReport, Rows
from serving.tasks.table import TASKS

MAX_BATCH, MAX_BATCH_COST = 8, 512  # an engine keeps the memory of its largest batch: none so large may come again

Infer = Callable[[Inputs], NDArray[np.float32]]


def prove(spec: Spec, infer: Mapping[str, Infer], tokenizer: bytes, golden: bytes, min_cosine: float) -> ProofReport:
    """Answer every golden entry and compare as the task does. Raises ProofFailed with the figures.

    infer: by tower. golden: proof.json.
    """
    task = TASKS[spec.task]
    towers = {tower.name: tower for tower in spec.towers}
    given, expected = [], []
    for part in task.recorded(golden, task.encoder(tokenizer, spec)):
        tower = towers[part.tower]
        if not part.items or part.rows.shape != (len(part.items), tower.dimension):
            raise ProofFailed(
                f"golden outputs are {part.rows.shape} for {len(part.items)} items of dimension {tower.dimension}: "
                "they belong to another model"
            )
        given.append(rows(infer[part.tower], tower, part.items))
        expected.append(part.rows)
    return task.compare(np.concatenate(given), np.concatenate(expected), min_cosine)


def rows(infer: Infer, tower: Tower, items: Sequence[Item]) -> Rows:
    """N items -> (N, D) in their order, in two or more small batches of similar cost.

    Raises ProofFailed for a wrong width.
    """
    costs = [tower.cost(item) for item in items]
    most = min(MAX_BATCH, tower.max_batch, -(-len(items) // 2))
    batches: list[list[int]] = [[]]
    for row in sorted(range(len(items)), key=costs.__getitem__):
        size = len(batches[-1]) + 1
        if size > most or (size > 1 and size * costs[row] > MAX_BATCH_COST):
            batches.append([])
        batches[-1].append(row)
    answers = np.zeros((len(items), tower.dimension), dtype=np.float32)
    for chosen in batches:
        output = infer(tower.collate([items[row] for row in chosen]))
        if output.shape != (len(chosen), tower.dimension):
            raise ProofFailed(
                f"the engine gave {output.shape}, expected {(len(chosen), tower.dimension)}: another model"
            )
        answers[chosen] = output
    return answers
