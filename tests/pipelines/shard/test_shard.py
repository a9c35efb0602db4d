"""Tensor parallelism without GPUs: each rank's graph in a process of its own, really summed, against the whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from pipelines import shard as shards
from pipelines import stage
from pipelines.compile import tensorrt_rtx
from pipelines.compile.base import CompileOrder
from pipelines.dagster.placement import pod
from pipelines.errors import ShardError
from pipelines.matrix.load import load
from pipelines.onnx_graph import external_data
from pipelines.plan.layout import graph
from pipelines.recipes import embed
from pipelines.shard import equivalence
from pipelines.stage import StageRequest
from serving.contract.profile import Precision, ShapeRange
from tests.support.families import write_family
from tests.support.fleets import CPU, Fleet
from tests.support.models import write_onnx
from tests.support.plans import HERE
from tests.support.services import ROOT

FAMILIES = ("xlm-roberta", "llama-bidirec", "causal-decoder")  # and the tiny BERT
TP2 = "tiny__l40s__fp32__tp2"


@pytest.fixture(scope="module")
def exports(
    tmp_path_factory: pytest.TempPathFactory, exported: Mapping[str, Path], texts_json: Path
) -> Callable[[str], Path]:
    """A family's fp32 ONNX, made once."""
    made = {"bert": exported["model.onnx"]}

    def of(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            write_family(name, folder / name, json.loads(texts_json.read_bytes())["calibration"])
            (model,) = embed.to_onnx(folder / name, folder).values()
            made[name] = folder / "model.onnx"
            onnx.save(model, made[name])
        return made[name]

    return of


def shard(source: Path, folder: Path, tp: int = 2, precision: str = "fp32") -> stage.StageResult:
    folder.mkdir()
    params = {"task": "embed", "precision": precision, "tp": tp}
    return stage.run(
        StageRequest(stage="shard", subject="t", params=params, inputs={"model.onnx": source}, output_dir=folder)
    )


def partitions(source: Path, folder: Path) -> list[Path]:
    """Both ranks' graphs, as the stage makes them, without its proof."""
    found = []
    for rank in (0, 1):
        model = shards.partition(external_data.read(source), source.parent, rank, 2)
        found += external_data.write(model, folder / shards.name_of(rank), source.parent, external=False)
    return found


def answer(path: Path, feeds: Mapping[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["embeddings"], dict(feeds))[0]


@pytest.mark.parametrize("family", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)])
def test_two_ranks_in_two_processes_answer_what_one_graph_answers(
    family: str, exports: Callable[[str], Path], tmp_path: Path
) -> None:
    source = exports(family)
    rng = np.random.default_rng(7)
    inputs = [value.name for value in onnx.load(source).graph.input]
    mask = np.array([[1] * 11, [1] * 4 + [0] * 7, [1] * 11], np.int64)
    feeds = {
        "input_ids": rng.integers(5, 90, mask.shape),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
    }
    feeds = {name: feeds[name] for name in inputs}
    wanted = answer(source, feeds)
    first, second = (
        found["embeddings"] for found in equivalence.answers(partitions(source, tmp_path), feeds, tmp_path)
    )
    assert np.array_equal(first, second)
    assert np.abs(first - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert not np.array_equal(first[0], first[1])  # texts that differ come out different


def test_a_rank_holds_its_part_of_what_is_partitioned_and_all_of_the_rest(
    exports: Callable[[str], Path], tmp_path: Path
) -> None:
    source = exports("bert")
    (words,) = (t for t in onnx.load(source).graph.initializer if t.name.endswith("word_embeddings.weight"))
    graphs = [onnx.load(path).graph for path in partitions(source, tmp_path)]
    for found in graphs:
        sums = [node for node in found.node if node.op_type == shards.COLLECTIVE]
        said = {a.name: onnx.helper.get_attribute_value(a) for a in sums[0].attribute}
        assert (len(sums), {node.domain for node in sums}) == (2 * 2, {shards.DOMAIN})
        assert said == {
            "collective_operation": b"all_reduce",
            "reduce_op": b"sum",
            "nb_rank": 2,
            "group_size": 0,
            "root": -1,
        }
        shapes = Counter(tuple(t.dims) for t in found.initializer)
        # Per layer: Q, K, V and the attention's output of 64 x 64, feed-forward 64 x 128 and back; 64 places.
        assert (shapes[64, 32], shapes[32, 64], shapes[64, 64]) == (2 * 3, 2, 2 * 2 + 1)
        assert not {(64, 128), (128, 64)} & shapes.keys()
        assert shapes[tuple(words.dims)] == 1
    halves = [
        {t.name.replace("rank1", "rank0"): numpy_helper.to_array(t) for t in found.initializer} for found in graphs
    ]
    assert halves[0].keys() == halves[1].keys()
    assert any(not np.array_equal(values, halves[1][name]) for name, values in halves[0].items())


def test_ranks_that_do_not_belong_together_are_refused(exports: Callable[[str], Path], tmp_path: Path) -> None:
    first, _ = partitions(exports("bert"), tmp_path)
    with pytest.raises(ShardError, match="differ by"):
        equivalence.prove(exports("bert"), [first, first], Precision.FP32, tmp_path)


def test_the_same_graph_is_partitioned_into_the_same_bytes(exports: Callable[[str], Path], tmp_path: Path) -> None:
    source = exports("bert")
    twice = [
        shards.partition(external_data.read(source), source.parent, 1, 2).SerializeToString(deterministic=True)
        for _ in range(2)
    ]
    assert twice[0] == twice[1]


@pytest.mark.parametrize(("family", "tp"), [("bert", 8), ("llama-bidirec", 4)])
def test_heads_that_cannot_be_shared_out_are_refused_with_the_remedy(
    family: str, tp: int, exports: Callable[[str], Path], tmp_path: Path
) -> None:
    """4 heads for 8 ranks; 2 key heads for 4."""
    with pytest.raises(ShardError, match=r"heads.*use a smaller tp"):
        shard(exports(family), tmp_path / "out", tp)


def test_a_graph_of_another_form_and_a_task_of_two_engines_are_refused(tmp_path: Path) -> None:
    source = write_onnx(tmp_path / "model.onnx")
    with pytest.raises(ShardError, match="this form of layer is not known"):
        shard(source, tmp_path / "out")
    params = {"task": "clip", "precision": "fp32", "tp": 2}
    request = StageRequest(stage="shard", subject="t", params=params, inputs={}, output_dir=tmp_path)
    with pytest.raises(ShardError, match="several engines"):
        stage.run(request)


def with_tp(fleet: Fleet) -> Fleet:
    """Rows that span two GPUs: one of a SKU whose engines are compiled anywhere, one of a SKU that must be there."""
    fleet.edit("precisions: [fp16], compiler: tensorrt-rtx", "precisions: [fp32, fp16], compiler: tensorrt-rtx")
    fleet.edit(
        "build:\n",
        "build:\n  - {models: [tiny], skus: [l40s], precisions: [fp32], tp: [2]}\n"
        "  - {models: [tiny], skus: [h100], precisions: [fp16], tp: [2]}\n",
    )
    return fleet


def test_a_row_of_several_gpus_plans_its_shards_and_says_what_it_waits_for(tmp_path: Path, tiny_model: Path) -> None:
    fleet = with_tp(Fleet.at(tmp_path / "fleet", tiny_model))
    matrix = load(fleet.folder / "matrix.yaml")
    plans = {plan.row.name: plan for plan in graph(matrix, matrix.rows, HERE).rows}
    here = plans[TP2]
    assert (here.refusal, here.engine) == ("needs a worker with l40s (2 GPUs, 0 here)", None)
    assert here.shards is not None
    assert here.shards.step == "shard/tiny__fp32__tp2"
    limits = pod(here.row)["container_config"]["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": "2"}
    with_gpus = graph(matrix, [here.row], replace(HERE, gpu_pci_ids=("26b9", "26b9")))
    assert with_gpus.rows[0].refusal == "no engine is made of 2 shards yet, and no server runs one"


@pytest.mark.slow
def test_a_build_makes_the_shards_ships_the_other_rows_and_says_why_not_these(tmp_path: Path, tiny_model: Path) -> None:
    fleet = with_tp(Fleet.at(tmp_path / "fleet", tiny_model))
    selected = ["-m", str(fleet.folder / "matrix.yaml"), "--select", TP2, "--select", CPU]
    places = [f"--{name}={fleet.folder / name}" for name in ("store", "dist")]

    def enginery(verb: str, *arguments: str) -> str:
        command = [sys.executable, "-m", "pipelines.cli", verb, *selected, *arguments]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        return subprocess.run(command, check=True, timeout=200, env=environ, capture_output=True, text=True).stdout

    def planned() -> dict[str, Any]:
        return {row["row"]: row for row in json.loads(enginery("plan", "--json", places[0]))["rows"]}

    before = planned()[TP2]
    assert (before["plan"], before["worker"], before["number_of_gpus"]) == ("skip", "2 × l40s GPU", 2)
    assert before["refusal"] == "needs a worker with l40s (2 GPUs, 0 here); its 2 shards are made here"
    said = enginery("build", "--no-image", *places)
    assert f"not shipped {TP2}: needs a worker with l40s (2 GPUs, 0 here)" in said
    assert planned()[TP2]["refusal"].endswith("; its 2 shards are there")
    assert "Nothing to build" in enginery("build", "--no-image", *places)


@pytest.mark.slow
def test_tensorrt_reads_a_ranks_graph_with_its_collectives_and_compiles_it(
    exports: Callable[[str], Path], exported: Mapping[str, Path], texts_json: Path, tmp_path: Path
) -> None:
    """fp16, for compute capability 8.9, ahead of time: what is missing to serve it are the GPUs."""
    (tmp_path / "fp16").mkdir()
    inputs = {name: exported[name] for name in ("model.onnx", "tokenizer.json", "task.json")}
    typed = stage.run(
        StageRequest(
            stage="quantize",
            subject="t",
            params={"task": "embed", "precision": "fp16", "num_texts": 1, "max_tokens": 8, "zero_points": False},
            inputs={**inputs, "texts.json": texts_json},
            output_dir=tmp_path / "fp16",
        )
    )
    made = shard(typed.outputs["model.onnx"], tmp_path / "out", precision="fp16")
    assert made.facts["max_error"] <= equivalence.MAX_ERROR[Precision.FP16]
    order = CompileOrder(
        source=made.outputs["rank1.onnx"],
        precision=Precision.FP16,
        shapes=ShapeRange(min=(1, 1), opt=(2, 16), max=(4, 64)),
        compute_capability="8.9",
        cpu_isa=None,
    )
    assert len(tensorrt_rtx.compile_engine(order).data) > 10_000
