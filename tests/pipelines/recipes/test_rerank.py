"""Rerankers of every family: PyTorch's scores, Transformers' tokens, the proof, and calibration pairs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from pipelines import stage
from pipelines.datasets import rerank as rerank_set
from pipelines.errors import ExportError, GateError
from pipelines.gate import judge
from pipelines.recipes import rerank
from pipelines.recipes.golden import NUM_PROOF_ITEMS
from pipelines.stage import StageRequest, StageResult
from pipelines.tasks.table import TASKS
from serving.contract.profile import Precision, ShapeRange
from serving.start import prove
from serving.tasks.rerank import Encoder, GoldenPairs, RerankSpec, load_golden
from serving.tasks.table import load_spec
from tests.support.families import FAMILIES, rewrite, write_family
from tests.support.models import SHAPES

NAMES = ("bert", *FAMILIES)
PARAMS: dict[str, Any] = {
    "model": "tiny",
    "task": "rerank",
    "source": "tiny",
    "max_tokens": None,
    "served_name": "tiny",
    "release": "0.1.0",
    "golden": {"num_texts": 48},
    "shapes": SHAPES,
}


class Exported:
    """A reranker's folder, and what the export stage made of it."""

    def __init__(self, folder: Path, outputs: Mapping[str, Path]) -> None:
        self.folder, self.outputs = folder, outputs
        self.tokenizer = outputs["tokenizer.json"].read_bytes()
        spec = load_spec(outputs["task.json"].read_bytes())
        assert isinstance(spec, RerankSpec)
        self.spec: RerankSpec = spec
        self.golden: GoldenPairs = load_golden(outputs["golden.json"].read_bytes())
        encoder = Encoder(self.tokenizer, spec)
        self.items = [encoder.encode(query, [passage], truncate="END")[0] for query, passage in self.golden.pairs]
        self.session = onnxruntime.InferenceSession(outputs["model.onnx"], providers=["CPUExecutionProvider"])

    def scores(self, chosen: list[int]) -> NDArray[np.float32]:
        [tower] = self.spec.towers
        found = self.session.run(["scores"], dict(tower.collate([self.items[i] for i in chosen])))[0]
        assert found.shape == (len(chosen), 1)
        return np.asarray(found[:, 0])


@pytest.fixture(scope="session")
def short_texts(texts_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labelled set with queries and passages short enough for models that know letters, not words."""
    content = json.loads(texts_json.read_bytes())
    labelled = content["retrieval"]
    labelled["queries"] = [" ".join(query.split()[:3])[:20] for query in labelled["queries"]]
    labelled["passages"] = [" ".join(p.split()[: 2 + n % 9]) for n, p in enumerate(labelled["passages"])]
    path = tmp_path_factory.mktemp("short") / "texts.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory, texts_json: Path, tiny_model: Path) -> Callable[[str], Path]:
    """A cross-encoder of each family with random weights, made once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("rerankers") / name
            if name == "bert":
                shutil.copytree(tiny_model, folder)
            else:
                write_family(name, folder, json.loads(texts_json.read_bytes())["calibration"])
            made[name] = with_one_logit(folder)
        return made[name]

    return of


def with_one_logit(folder: Path) -> Path:
    """Give a body the head that transformers has for its family."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    kept = json.loads((folder / "config.json").read_text())
    is_bidirectional = kept["model_type"] == "llama_bidirec"
    if is_bidirectional:
        rewrite(folder / "config.json", {"model_type": "llama"})
    config = AutoConfig.from_pretrained(folder)
    config.num_labels = 1
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder, safe_serialization=True)
    if is_bidirectional:
        architecture = "LlamaBidirectionalForSequenceClassification"
        changes = {"model_type": "llama_bidirec", "architectures": [architecture], "temperature": 0.5, "pooling": "avg"}
        rewrite(folder / "config.json", changes)
    return folder


@pytest.fixture(scope="session")
def exported_of(
    tmp_path_factory: pytest.TempPathFactory, short_texts: Path, folder_of: Callable[[str], Path]
) -> Callable[[str], Exported]:
    made: dict[str, Exported] = {}

    def of(name: str) -> Exported:
        if name not in made:
            inputs = {"model": folder_of(name), "texts.json": short_texts}
            folder = tmp_path_factory.mktemp("exported")
            request = StageRequest(stage="export", subject="a test", params=PARAMS, inputs=inputs, output_dir=folder)
            made[name] = Exported(folder_of(name), stage.run(request).outputs)
        return made[name]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_familys_scores_are_pytorchs_alone_and_in_200_random_batches(
    name: str, exported_of: Callable[[str], Exported]
) -> None:
    exported = exported_of(name)
    golden = exported.golden.scores
    assert golden.std() > 0.05, "all pairs score alike: nothing was tested"
    alone = np.concatenate([exported.scores([i]) for i in range(len(golden))])
    np.testing.assert_allclose(alone, golden, atol=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(200):
        chosen = rng.integers(0, len(golden), rng.integers(1, 9)).tolist()
        np.testing.assert_allclose(exported.scores(chosen), alone[chosen], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "modernbert", "causal-decoder"])
def test_golden_scores_are_what_transformers_own_class_gives(name: str, exported_of: Callable[[str], Exported]) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    exported = exported_of(name)
    model = AutoModelForSequenceClassification.from_pretrained(exported.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    how = {"truncation": "only_second", "max_length": exported.spec.max_tokens, "return_tensors": "pt"}
    with torch.inference_mode():
        for (query, passage), score in list(zip(*(exported.golden.pairs, exported.golden.scores), strict=True))[:8]:
            tokens = tokenizer(query, passage, **how)
            given = {key: value for key, value in tokens.items() if key in exported.spec.input_names}
            assert float(model(**given).logits[0, 0]) == pytest.approx(float(score), abs=1e-4)


@pytest.mark.slow
def test_a_bidirectional_llama_sees_both_ways_is_averaged_and_divided_by_its_temperature(
    exported_of: Callable[[str], Exported],
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    exported = exported_of("llama-bidirec")
    fields = json.loads((exported.folder / "config.json").read_text()) | {"model_type": "llama"}
    model = LlamaForSequenceClassification.from_pretrained(exported.folder, config=LlamaConfig(**fields)).eval()
    with torch.inference_mode():
        for item, score in zip(exported.items[:8], exported.golden.scores, strict=False):
            length = item.shape[-1]
            everything = torch.zeros(1, 1, length, length)
            hidden = model.model(input_ids=torch.tensor(item[:1]), attention_mask=everything).last_hidden_state
            expected = float(model.score(hidden.mean(1))[0, 0]) / 0.5
            assert expected == pytest.approx(float(score), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_proof_ships_short_and_long_pairs_and_proves_the_exported_engine(
    name: str, exported_of: Callable[[str], Exported]
) -> None:
    exported = exported_of(name)
    proof = exported.outputs["proof.json"].read_bytes()
    lengths = [item.shape[-1] for item in exported.items]
    shipped = [lengths[exported.golden.pairs.index(pair)] for pair in load_golden(proof).pairs]
    assert len(shipped) == NUM_PROOF_ITEMS
    assert (min(shipped), max(shipped)) == (min(lengths), max(lengths))
    infer = {"model": lambda inputs: exported.session.run(None, dict(inputs))[0]}
    report = prove.prove(exported.spec, infer, exported.tokenizer, proof, 0.999)
    assert report.num_items == len(shipped)


@pytest.mark.slow
def test_the_axes_are_called_b_and_t_and_the_answer_scores(exported_of: Callable[[str], Exported]) -> None:
    exported = exported_of("bert")
    graph = onnx.load(exported.outputs["model.onnx"]).graph
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    ids = {name: ["B", "T"] for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert axes == {**ids, "scores": ["B", 1]}
    assert exported.spec.max_tokens == 64


@pytest.mark.slow
def test_tokens_that_are_not_those_of_transformers_are_refused(exported_of: Callable[[str], Exported]) -> None:
    from transformers import AutoTokenizer

    exported = exported_of("bert")
    theirs = AutoTokenizer.from_pretrained(exported.folder)
    pairs = [("the file", "return of the string")]
    item = Encoder(exported.tokenizer, exported.spec).encode(pairs[0][0], [pairs[0][1]])[0]
    rerank.check_tokens(theirs, pairs, [item], exported.spec)
    types_lost = np.stack([item[0], np.zeros_like(item[1])])
    with pytest.raises(ExportError, match="other tokens than transformers for 'the file'"):
        rerank.check_tokens(theirs, pairs, [types_lost], exported.spec)


@pytest.mark.slow
def test_calibration_gives_pairs_right_and_wrong_within_its_limit(exported_of: Callable[[str], Exported]) -> None:
    exported = exported_of("bert")
    texts = [f"the string of file {n} is not in the object {'or to ' * n}" for n in range(6)]
    spec = msgspec.structs.replace(exported.spec, max_tokens=24)
    (tower,) = spec.towers
    items = rerank.calibration(Encoder(exported.tokenizer, spec), "model", texts, {})
    batches = [tower.collate([item]) for item in items]
    assert [set(batch) for batch in batches] == [{"input_ids", "attention_mask", "token_type_ids"}] * 6
    assert max(batch["input_ids"].shape[1] for batch in batches) == 24
    assert all(set(batch["token_type_ids"][0].tolist()) == {0, 1} for batch in batches)


def test_every_reason_against_a_folder_is_told_at_once(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("bert"), tmp_path / "wrong"))
    (folder / "tokenizer.json").unlink()
    labels = {"0": "no", "1": "maybe", "2": "yes"}
    rewrite(folder / "config.json", {"model_type": "jina_x", "id2label": labels, "architectures": ["BertModel"]})
    with pytest.raises(ExportError) as told:
        rerank.to_onnx(folder, tmp_path)
    lines = str(told.value).splitlines()
    assert lines[0] == "wrong:"
    for line, words in zip(
        lines[1:],
        (
            "transformers has no model_type 'jina_x', and code that comes with a model",
            "the head has 3 labels; a reranker has one",
            "architectures names no …ForSequenceClassification",
            "tokenizer.json: missing",
        ),
        strict=True,
    ):
        assert words in line


def test_a_decoder_with_a_pooling_that_is_not_known_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folder_of("llama-bidirec"), tmp_path / "wrong"))
    rewrite(folder / "config.json", {"pooling": "weighted_avg"})
    with pytest.raises(ExportError, match="'weighted_avg' is not supported; one of avg, cls, last is"):
        rerank.check(folder)


@pytest.mark.parametrize(("name", "head"), [("bert", "classifier.weight"), ("causal-decoder", "score.weight")])
def test_a_head_without_weights_is_refused_instead_of_made_up(
    name: str, head: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(folder_of(name), tmp_path / "headless"))
    weights = load_file(folder / "model.safetensors")
    save_file(
        {key: value for key, value in weights.items() if key != head}, folder / "model.safetensors", {"format": "pt"}
    )
    spec = RerankSpec(
        served_name="x",
        release="1",
        max_tokens=8,
        pad_token_id=0,
        input_names=("input_ids", "attention_mask"),
        shapes=msgspec.convert(SHAPES, ShapeRange),
    )
    with pytest.raises(ExportError, match=f"{head}.*random numbers"):
        rerank.reference(folder, [], spec)


def test_more_golden_pairs_than_there_are_is_refused(short_texts: Path) -> None:
    texts = json.loads(short_texts.read_bytes())
    with pytest.raises(ExportError, match=r"golden\.num_texts is 9999, there are 2048 pairs; ask for fewer"):
        rerank.golden_pairs(texts, 9999)


def test_golden_pairs_are_of_queries_that_the_gate_does_not_rank(texts_json: Path) -> None:
    texts = json.loads(texts_json.read_bytes())
    pairs = rerank.golden_pairs(texts, 320)
    assert len(set(pairs)) == 320
    assert not {query for query, _ in pairs} & set(texts["retrieval"]["queries"][: rerank_set.NUM_QUERIES])
    lengths = [len(passage.split()) for _, passage in pairs]
    assert min(lengths) < 20
    assert max(lengths) > 200


Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def inputs(exported_of: Callable[[str], Exported], short_texts: Path) -> dict[str, Path]:
    outputs = exported_of("bert").outputs
    files = {name: outputs[name] for name in ("tokenizer.json", "task.json", "golden.json")}
    return {**files, "texts.json": short_texts, "engine": outputs["model.onnx"], "fp32.onnx": outputs["model.onnx"]}


@pytest.fixture
def measured(inputs: dict[str, Path], tmp_path: Path) -> Measure:
    """Run the stage with some params changed and some inputs replaced; returns metrics.json."""

    def run(changed: Mapping[str, Any] | None = None, **replaced: Path) -> dict[str, Any]:
        outputs = run_measure(tmp_path, {**inputs, **replaced}, changed or {}).outputs
        return dict(json.loads(outputs["metrics.json"].read_bytes()))

    return run


def run_measure(tmp_path: Path, inputs: Mapping[str, Path], changed: Mapping[str, Any]) -> StageResult:
    folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    params = {"task": "rerank", "precision": "fp32", "evaluated": "engine", "backend": "onnxruntime", **changed}
    return stage.run(StageRequest(stage="measure", subject="a test", params=params, inputs=inputs, output_dir=folder))


def judged(metrics: Mapping[str, Any], precision: Precision = Precision.FP32) -> judge.Verdict:
    rules, thresholds = TASKS["rerank"].rules, TASKS["rerank"].thresholds[precision]
    return judge.judge(metrics, rules, thresholds, row="a row", evaluated="engine", digests={})


def with_noise(path: Path, target: Path, amount: float) -> Path:
    """The same graph with weights a little off."""
    model, rng = onnx.load(path), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == tensor.FLOAT and len(tensor.dims) == 2:
            values = numpy_helper.to_array(tensor)
            noise = rng.normal(size=values.shape).astype(np.float32) * amount * values.std()
            tensor.CopyFrom(numpy_helper.from_array(values + noise, tensor.name))
    onnx.save(model, target)
    return target


@pytest.mark.slow
def test_the_reference_measured_against_itself_passes_its_gate(measured: Measure) -> None:
    metrics = measured()
    assert metrics["scores"]["num_pairs"] == PARAMS["golden"]["num_texts"]
    assert metrics["scores"]["kendall_tau"] > 0.99
    assert metrics["scores"]["max_abs_error"] < 1e-4
    assert metrics["batch_invariance"]["max_abs_error"] < 1e-4
    assert metrics["batch_invariance"]["batch_size"] == SHAPES["max"][0]
    found = metrics["retrieval"]
    assert (found["set"], found["first_stage"], found["drop"]) == ("stdlib-docstrings", "bm25", 0)
    assert (found["num_queries"], found["num_candidates"]) == (rerank_set.NUM_QUERIES, rerank_set.NUM_CANDIDATES)
    assert found["ndcg_at_10"] == found["reference_ndcg_at_10"]
    assert 0 < found["ndcg_at_10"] < found["first_stage_ndcg_at_10"], "a random head cannot find what BM25 does"
    assert metrics["realized_precision"] == {"fp32": 1.0}
    assert metrics["size_bytes"] > 1000
    assert judged(metrics).passed


@pytest.mark.slow
def test_another_engines_scores_are_told_from_the_references_and_fail(
    measured: Measure, inputs: dict[str, Path], tmp_path: Path
) -> None:
    metrics = measured(engine=with_noise(inputs["engine"], tmp_path / "other.onnx", 0.2))
    assert 0 < metrics["scores"]["kendall_tau"] < 0.99
    assert metrics["retrieval"]["reference_ndcg_at_10"] == measured()["retrieval"]["ndcg_at_10"]
    verdict = judged(metrics)
    assert {check.name for check in verdict.checks if check.passed is False} >= {"kendall_tau", "score_error"}


@pytest.mark.slow
def test_padding_that_leaks_into_a_score_fails_batch_invariance(
    measured: Measure, inputs: dict[str, Path], tmp_path: Path
) -> None:
    model = onnx.load(inputs["engine"])
    one = numpy_helper.from_array(np.array(1, np.int64), "unmasked_one")
    zero = numpy_helper.from_array(np.array(0, np.int64), "unmasked_zero")
    model.graph.initializer.extend([one, zero])
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[place] = "unmasked"
    nodes = [
        onnx.helper.make_node("Mul", ["attention_mask", "unmasked_zero"], ["unmasked_nothing"]),
        onnx.helper.make_node("Add", ["unmasked_nothing", "unmasked_one"], ["unmasked"]),
    ]
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    onnx.save(model, tmp_path / "leaky.onnx")
    metrics = measured(engine=tmp_path / "leaky.onnx")
    assert metrics["batch_invariance"]["max_abs_error"] > 0.01
    assert any(check.name == "batch_invariance" and check.passed is False for check in judged(metrics).checks)


@pytest.mark.slow
def test_a_recorded_reference_gives_what_running_it_gives(
    measured: Measure, inputs: dict[str, Path], tmp_path: Path
) -> None:
    recorded = run_measure(tmp_path, inputs, {"evaluated": "reference"}).outputs["reference.json"]
    other = with_noise(inputs["engine"], tmp_path / "other.onnx", 0.1)
    found = measured(engine=other, **{"reference.json": recorded})["retrieval"]
    assert found == measured(engine=other)["retrieval"]
    changed = tmp_path / "other.json"
    changed.write_text(json.dumps({**json.loads(recorded.read_bytes()), "set": "beir:mine"}))
    with pytest.raises(GateError, match="is of beir:mine, 128 queries with 10 candidates, not of stdlib"):
        measured(engine=other, **{"reference.json": changed})


@pytest.mark.slow
def test_a_persons_own_set_is_ranked(measured: Measure, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "a", "text": "the file"}\n{"_id": "b", "text": "the object"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "object"}\n')
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tb\t1\n")
    found = measured({"retrieval": "beir:mine", "source_base": str(tmp_path)})["retrieval"]
    assert (found["set"], found["num_queries"], found["num_candidates"]) == ("beir:mine", 1, 2)
    assert found["first_stage_ndcg_at_10"] == 1
