"""The table of tasks: everything of a task is found through its row, and its files name it."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from serving.tasks.embed import EmbedSpec
from serving.tasks.table import TASKS, load_spec
from tests.support.profiles import Tiny
from tests.support.tiny_models import Model, embedder, reranker, see_and_read

MODELS: dict[str, Callable[[Tiny], Model]] = {
    "embed": embedder,
    "rerank": lambda tiny: reranker(),
    "clip": lambda tiny: see_and_read(),
}


def test_a_task_file_of_the_first_release_is_still_read() -> None:
    old = (
        b'{"dimension":384,"input_names":["input_ids","attention_mask"],"max_tokens":256,"output_name":"embeddings",'
        b'"pad_token_id":0,"passage_prefix":"","query_prefix":"","release":"0.1.0","served_name":"all-minilm-l6-v2",'
        b'"shapes":{"max":[32,256],"min":[1,1],"opt":[8,64]},"task":"embed"}'
    )
    spec = load_spec(old)
    assert spec == EmbedSpec.load(old)
    assert isinstance(spec, EmbedSpec)
    assert (spec.dimension, spec.shapes.opt, spec.matryoshka_dimensions, spec.int8_range) == (384, (8, 64), (), 0.0)


@pytest.mark.parametrize("task", TASKS)
def test_the_spec_of_every_task_survives_its_file_and_names_its_towers(task: str, tiny: Tiny) -> None:
    model = MODELS[task](tiny)
    written = model.spec.dump()
    assert load_spec(written) == model.spec
    assert load_spec(written).dump() == written
    assert (model.spec.task, json.loads(written)["task"]) == (task, task)
    assert tuple(tower.name for tower in model.spec.towers) == TASKS[task].towers
    for field in ("served_name", "release", "max_tokens", "pad_token_id", "shapes"):
        assert hasattr(model.spec, field)


@pytest.mark.parametrize("task", TASKS)
def test_every_row_reads_its_golden_outputs_tower_by_tower_and_takes_them_for_themselves(task: str, tiny: Tiny) -> None:
    model, row = MODELS[task](tiny), TASKS[task]
    assert type(model.spec) is row.spec
    parts = row.recorded(model.proof, row.encoder(model.tokenizer, model.spec))
    assert tuple(part.tower for part in parts) == row.towers
    for part, tower in zip(parts, model.spec.towers, strict=True):
        assert part.rows.shape == (len(part.items), tower.dimension)
        assert tower.collate(part.items[:2])
    rows = np.concatenate([part.rows for part in parts])
    assert row.compare(rows, rows, 0.99999).min_cosine == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "sing"}, "sing"),
        ({"task": None}, "task"),
        ({"max_tokens": "32"}, r"\$\.max_tokens"),
        ({}, "dimension"),
    ],
)
def test_a_task_file_that_is_wrong_names_the_place(tiny: Tiny, change: dict[str, object], words: str) -> None:
    content = json.loads(tiny.spec.dump()) | change
    if not change:
        del content["dimension"]
    with pytest.raises(msgspec.ValidationError, match=words):
        load_spec(json.dumps(content).encode())
