"""Bodies of every family: PyTorch's answers and Transformers' tokens, alone and padded, in fp32 and fp16."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file

from pipelines import stage
from pipelines.errors import ExportError
from pipelines.recipes import embed, transformer
from pipelines.recipes.pooling_head import ACTIVATIONS
from pipelines.stage import StageRequest
from serving.start import prove
from serving.tasks.embed import EmbedSpec, Encoder, Golden, load_golden
from tests.support.families import FAMILIES, SMALL, rewrite, write_family, write_head
from tests.support.models import EXPORT_PARAMS, SHAPES, RunStage

NAMES = ("bert", *FAMILIES)
Outputs = Mapping[str, Path]
Vectors = NDArray[np.float32]


class Family:
    """A model folder and what the export stage made of it."""

    def __init__(self, folder: Path, outputs: Outputs) -> None:
        self.folder, self.outputs = folder, outputs
        self.tokenizer = outputs["tokenizer.json"].read_bytes()
        self.spec: EmbedSpec = EmbedSpec.load(outputs["task.json"].read_bytes())
        self.golden: Golden = load_golden(outputs["golden.json"].read_bytes())
        self.items = Encoder(self.tokenizer, self.spec).encode(self.golden.texts, truncate="END")

    def cosines(self, vectors: Vectors) -> Vectors:
        golden = self.golden.vectors[: len(vectors)]
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(golden, axis=1)
        return np.asarray(np.einsum("nd,nd->n", vectors, golden) / lengths)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory, texts_json: Path, tiny_model: Path) -> Callable[[str], Path]:
    """The model folder of a family, made once."""
    made: dict[str, Path] = {"bert": tiny_model}

    def of(name: str) -> Path:
        if name not in made:
            texts = json.loads(texts_json.read_bytes())["calibration"]
            made[name] = write_family(name, tmp_path_factory.mktemp("families") / name, texts)
        return made[name]

    return of


@pytest.fixture(scope="session")
def family_of(
    tmp_path_factory: pytest.TempPathFactory, texts_json: Path, folder_of: Callable[[str], Path]
) -> Callable[[str], Family]:
    """A family, exported once."""
    made: dict[str, Family] = {}

    def of(name: str) -> Family:
        if name not in made:
            made[name] = export(folder_of(name), texts_json, tmp_path_factory.mktemp("exported"))
        return made[name]

    return of


def export(folder: Path, texts_json: Path, output_dir: Path, **params: Any) -> Family:
    inputs = {"model": folder, "texts.json": texts_json}
    request = StageRequest(
        stage="export", subject="a test", params={**EXPORT_PARAMS, **params}, inputs=inputs, output_dir=output_dir
    )
    return Family(folder, stage.run(request).outputs)


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy" / folder.name))


def run_onnx(path: Path, spec: EmbedSpec, items: Sequence[NDArray[Any]]) -> Vectors:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(spec.towers[0].collate(items)))[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_family_answers_as_pytorch_does_alone_and_in_a_padded_batch(
    name: str, family_of: Callable[[str], Family]
) -> None:
    family = family_of(name)
    session = onnxruntime.InferenceSession(family.outputs["model.onnx"], providers=["CPUExecutionProvider"])
    [together] = session.run(None, dict(family.spec.towers[0].collate(family.items)))
    alone = np.concatenate([session.run(None, dict(family.spec.towers[0].collate([item])))[0] for item in family.items])
    assert len({item.size for item in family.items}) > 10, "all texts are of one length: no padding was tested"
    assert family.cosines(alone).min() >= 0.9999
    assert family.cosines(together).min() >= 0.9999
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.ptp(family.golden.vectors @ family.golden.vectors.T) > 0.1, "all texts look alike: nothing was tested"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_familys_tokens_are_those_of_transformers(name: str, family_of: Callable[[str], Family]) -> None:
    from transformers import AutoTokenizer

    family = family_of(name)
    theirs = AutoTokenizer.from_pretrained(family.folder, trust_remote_code=False, local_files_only=True)
    texts = [
        "def f(x):\n\treturn x",
        "  two  spaces ",
        "héllo 漢字 🙂",
        "ﬁ Ⅳ\u00ad\u200b",
        "</s> [SEP] <|endoftext|>",
        "word " * 200,
    ]
    prefix = {None: "", "query": family.spec.query_prefix, "passage": family.spec.passage_prefix}
    encoder = Encoder(family.tokenizer, family.spec)
    for input_type, before in prefix.items():
        found = encoder.encode(texts, truncate="END", input_type=input_type)  # type: ignore[arg-type]
        expected = theirs([before + text for text in texts], truncation=True, max_length=family.spec.max_tokens)
        assert [ids.tolist() for ids in found] == expected["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_proof_at_the_servers_start_agrees_with_each_familys_golden_vectors(
    name: str, family_of: Callable[[str], Family]
) -> None:
    family = family_of(name)
    session = onnxruntime.InferenceSession(family.outputs["model.onnx"], providers=["CPUExecutionProvider"])
    infer = {"model": lambda inputs: session.run(None, dict(inputs))[0]}
    report = prove.prove(family.spec, infer, family.tokenizer, family.outputs["golden.json"].read_bytes(), 0.9999)
    assert report.num_items == EXPORT_PARAMS["golden"]["num_texts"]
    queries = Encoder(family.tokenizer, family.spec).encode(family.golden.texts, truncate="END", input_type="query")
    with_prefix = run_onnx(family.outputs["model.onnx"], family.spec, queries)
    assert family.cosines(with_prefix).min() < 0.999, "a prefix changes nothing: that it is left out was not tested"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_family_is_quantized_to_fp16_and_compiled(
    name: str, family_of: Callable[[str], Family], run_stage: RunStage
) -> None:
    family = family_of(name)
    typed = run_stage("quantize", {"task": "embed", "precision": "fp16"}, family.outputs).outputs["model.onnx"]
    # The reference evaluator computes in fp16 what is fp16; ONNX Runtime's CPU kernels do it in fp32.
    inputs = dict(family.spec.towers[0].collate(family.items[:16]))
    [vectors] = ReferenceEvaluator(onnx.load(typed)).run(None, inputs)
    assert family.cosines(vectors).min() >= 0.999
    order = {"task": "embed", "shapes": SHAPES, "tp": 1}
    if find_spec("tensorrt_rtx_bindings"):
        rtx = {**order, "compiler": "tensorrt-rtx", "precision": "fp16", "compute_capability": "8.9"}
        assert run_stage("compile", rtx, {"model.onnx": typed}).outputs["engine"].stat().st_size > 100_000
    if find_spec("openvino"):
        import openvino as ov

        cpu = {**order, "compiler": "openvino", "precision": "fp32", "cpu_isa": None}
        blob = run_stage("compile", cpu, family.outputs).outputs["engine"].read_bytes()
        [found] = (
            ov.Core()
            .import_model(blob, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
                dict(family.spec.towers[0].collate(family.items[:4]))
            )
            .values()
        )
        assert family.cosines(found).min() >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize(("name", "is_seen"), [("llama-bidirec", True), ("causal-decoder", False)])
def test_only_a_bidirectional_decoders_first_token_knows_the_last(
    name: str, is_seen: bool, folder_of: Callable[[str], Path], texts_json: Path, tmp_path: Path
) -> None:
    folder = copy_of(folder_of(name), tmp_path)
    write_head(folder, "pooling_mode_cls_token")  # the vector of the first token
    family = export(folder, texts_json, tmp_path)
    items = [np.array([5, 6, 7, 8]), np.array([5, 6, 7, 9])]
    one, other = run_onnx(family.outputs["model.onnx"], family.spec, items)
    assert (float(one @ other) < 0.9999) == is_seen
    assert family.cosines(run_onnx(family.outputs["model.onnx"], family.spec, family.items)).min() >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-bidirec", "causal-decoder"])
def test_a_decoder_whose_states_are_large_keeps_its_answers_in_fp16(
    name: str, folder_of: Callable[[str], Path], texts_json: Path, tmp_path: Path, run_stage: RunStage
) -> None:
    folder = copy_of(folder_of(name), tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["embed_tokens.weight"][:, 7] *= 2000  # as trained decoders have it; the square of 256 is inf in fp16
    assert np.abs(weights["embed_tokens.weight"]).max() > 256
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    family = export(folder, texts_json, tmp_path)
    typed = run_stage("quantize", {"task": "embed", "precision": "fp16"}, family.outputs).outputs["model.onnx"]
    [vectors] = ReferenceEvaluator(onnx.load(typed)).run(None, dict(family.spec.towers[0].collate(family.items[:8])))
    assert family.cosines(vectors).min() >= 0.999


@pytest.mark.slow
def test_two_exports_of_a_decoder_give_the_same_bytes(
    family_of: Callable[[str], Family], texts_json: Path, run_stage_afresh: Callable[..., dict[str, Any]]
) -> None:
    family = family_of("llama-bidirec")
    inputs = {"model": family.folder, "texts.json": texts_json}
    answer = run_stage_afresh("export", EXPORT_PARAMS, inputs, "elsewhere", cpu=min(os.sched_getaffinity(0)))
    assert answer["exit_code"] == 0, answer
    for name, path in family.outputs.items():
        assert Path(answer["outputs"][name]).read_bytes() == path.read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_graph_masks_with_what_fp16_cannot_hold(name: str, family_of: Callable[[str], Family]) -> None:
    graph = onnx.load(family_of(name).outputs["model.onnx"]).graph
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.name == "value")]
    values = [onnx.numpy_helper.to_array(tensor) for tensor in tensors if tensor.data_type == tensor.FLOAT]
    assert min(value.min() for value in values if value.size) >= transformer.LEAST_FP16


@pytest.mark.slow
def test_a_model_with_dense_modules_answers_as_pytorch_does(tiny_model: Path, texts_json: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path)
    write_head(folder, "pooling_mode_cls_token", dense=tuple(ACTIVATIONS))
    family = export(folder, texts_json, tmp_path)
    assert family.cosines(run_onnx(family.outputs["model.onnx"], family.spec, family.items)).min() >= 0.9999


@pytest.mark.slow
def test_the_task_file_holds_the_range_of_int8_and_the_matryoshka_lengths(
    folder_of: Callable[[str], Path], texts_json: Path, tmp_path: Path
) -> None:
    folder = copy_of(folder_of("bert"), tmp_path)
    family = export(folder, texts_json, tmp_path, matryoshka=True)
    assert family.spec.matryoshka_dimensions == (32, 64)
    largest = np.abs(family.golden.vectors).max()
    assert largest <= family.spec.int8_range <= largest + 1e-6


@pytest.mark.slow
def test_calibration_texts_carry_the_prefix_of_a_passage(family_of: Callable[[str], Family]) -> None:
    family = family_of("llama-bidirec")
    encoder = Encoder(family.tokenizer, family.spec)
    [item] = embed.calibration(encoder, "model", ["a file"], {})
    [expected] = encoder.encode(["passage: a file"])
    assert item.tolist() == expected.tolist()


@pytest.mark.slow
def test_code_that_comes_with_a_model_is_never_run(
    folder_of: Callable[[str], Path], texts_json: Path, tmp_path: Path
) -> None:
    folder = copy_of(folder_of("llama-bidirec"), tmp_path)
    module, trace = "llama_bidirectional_model", tmp_path / "it ran"
    (folder / f"{module}.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    classes = {"AutoConfig": f"{module}.LlamaBidirectionalConfig", "AutoModel": f"{module}.LlamaBidirectionalModel"}
    rewrite(folder / "config.json", {"auto_map": classes})
    export(folder, texts_json, tmp_path)
    assert not trace.exists()


@pytest.mark.slow
def test_weights_that_are_missing_are_not_made_up(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of(folder_of("causal-decoder"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ExportError, match=r"1 weights are in no \.safetensors file, the first is layers\.1\.mlp\.up_proj"
    ):
        transformer.load(folder)


@pytest.mark.slow
def test_a_family_whose_graph_asks_for_more_than_the_server_gives_is_refused(tmp_path: Path) -> None:
    import torch
    from transformers import PhiConfig, PhiModel

    torch.manual_seed(0)
    folder, scratch = tmp_path / "phi", tmp_path / "scratch"
    scratch.mkdir()
    PhiModel(PhiConfig(**SMALL, vocab_size=100)).save_pretrained(folder)
    with pytest.raises(ExportError, match=r"asks for position_ids, .* 'phi' models are not supported"):
        transformer.to_onnx(folder, scratch)


@pytest.mark.slow
def test_a_model_that_lowers_texts_outside_its_tokenizer_is_refused(
    folder_of: Callable[[str], Path], texts_json: Path, tmp_path: Path
) -> None:
    folder = copy_of(folder_of("xlm-roberta"), tmp_path)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": True}))
    with pytest.raises(ExportError, match="do_lower_case is true, and the tokenizer keeps capitals"):
        export(folder, texts_json, tmp_path)


@pytest.mark.slow
def test_more_tokens_than_the_model_has_positions_are_refused(
    folder_of: Callable[[str], Path], texts_json: Path, tmp_path: Path
) -> None:
    shapes = {**SHAPES, "max": [4, 128]}
    with pytest.raises(ExportError, match=r"max_tokens is 65, xlm-roberta can take 64 tokens; lower max_tokens"):
        export(folder_of("xlm-roberta"), texts_json, tmp_path, max_tokens=65, shapes=shapes)


@pytest.mark.parametrize(
    ("config", "is_causal"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "llama_bidirec"}, False),
        ({"model_type": "qwen2", "is_causal": False}, False),
        ({"model_type": "mistral", "use_bidirectional_attention": True}, False),
        ({"model_type": "bert"}, False),
    ],
)
def test_whether_a_body_looks_ahead_is_what_its_config_says(
    tmp_path: Path, config: dict[str, Any], is_causal: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert transformer.read_body(tmp_path).is_causal == is_causal
