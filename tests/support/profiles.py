"""A tiny real embedding model: ONNX, OpenVINO blob, tokenizer, golden outputs, and manifest roots made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from blake3 import blake3
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from serving.backends.base import LoadOptions
from serving.backends.onnxruntime import load as load_onnx
from serving.backends.openvino import import_openvino
from serving.contract import manifest
from serving.contract.profile import Precision, Profile, ProfileFile, ShapeRange
from serving.start.prove import rows
from serving.tasks.embed import EmbedSpec, Encoder, Golden, dump_golden

WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{n}" for n in range(96)))
DIMENSION = 16
MAX_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A model's files."""

    onnx: bytes
    blob: bytes
    tokenizer: bytes
    spec: EmbedSpec
    golden: Golden

    def files(self, engine_name: str, engine: bytes) -> dict[str, bytes]:
        return {
            engine_name: engine,
            "tokenizer.json": self.tokenizer,
            "task.json": self.spec.dump(),
            "proof.json": dump_golden(self.golden),
        }

    def reference(self, texts: list[str]) -> NDArray[np.float32]:
        """Each text alone, by ONNX Runtime."""
        backend = load_onnx(self.onnx, LoadOptions(precision=Precision.FP32, num_threads=1))
        encoder = Encoder(self.tokenizer, self.spec)
        return np.concatenate(
            [rows(backend.infer, self.spec.towers[0], encoder.encode([text], truncate="END")) for text in texts]
        )


def tiny_onnx(seed: int) -> bytes:
    """Token table -> product -> mean over the mask -> length 1: (B, T) -> (B, D)."""
    rng = np.random.default_rng(seed)
    constants: Mapping[str, NDArray[np.generic]] = {
        "table": rng.normal(size=(len(WORDS), DIMENSION)).astype(np.float32),
        "weight": rng.normal(size=(DIMENSION, DIMENSION)).astype(np.float32),
        "last": np.array([2], np.int64),
        "middle": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("MatMul", ["words", "weight"], ["states"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["states", "wide_mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "middle"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("ReduceL2", ["mean", "middle"], ["norm"], keepdims=1),
        helper.make_node("Div", ["mean", "norm"], ["embeddings"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", DIMENSION])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tiny_blob(model: bytes) -> bytes:
    core = import_openvino().Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return bytes(compiled.export_model().getvalue())


def tiny_tokenizer() -> bytes:
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return bytes(tokenizer.to_str().encode())


def make_tiny(seed: int) -> Tiny:
    spec = EmbedSpec(
        served_name="tiny",
        release="0.1.0",
        dimension=DIMENSION,
        max_tokens=MAX_TOKENS,
        pad_token_id=0,
        input_names=("input_ids", "attention_mask"),
        shapes=ShapeRange(min=(1, 1), opt=(4, 16), max=(8, MAX_TOKENS)),
    )
    model, tokenizer = tiny_onnx(seed), tiny_tokenizer()
    rng = np.random.default_rng(seed)
    texts = tuple(" ".join(f"w{n}" for n in rng.integers(0, 96, size)) for size in (1, 3, 7, 12, 25, 60))
    backend = load_onnx(model, LoadOptions(precision=Precision.FP32, num_threads=1))
    items = Encoder(tokenizer, spec).encode(texts, truncate="END")
    golden = Golden(texts=texts, vectors=rows(backend.infer, spec.towers[0], items))
    return Tiny(onnx=model, blob=tiny_blob(model), tokenizer=tokenizer, spec=spec, golden=golden)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return make_tiny(0)


@pytest.fixture(scope="session")
def other() -> Tiny:
    """Another model with the same shapes: its engine must not pass the first one's proof."""
    return make_tiny(1)


def add_profile(root: Path, row: str, tags: Mapping[str, str], files: Mapping[str, bytes]) -> Profile:
    """Write the files as blobs; the profile that names them."""
    folder = root / "blobs" / "blake3"
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for path, data in files.items():
        name = blake3(data).hexdigest()
        (folder / name).write_bytes(data)
        uri, checksum = f"blobs/blake3/{name}", f"blake3:{name}"
        listed.append(ProfileFile(path=path, uri=uri, checksum=checksum, size_bytes=len(data)))
    profile = Profile(
        id=manifest.profile_id(tags), name=row, tags=dict(tags), files=tuple(listed), proof_min_cosine=0.98
    )
    return replace(profile, digest=manifest.content_digest(profile))


def write_manifest(root: Path, profiles: list[Profile]) -> None:
    path = root / "etc" / "default" / "model_manifest.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = tuple(sorted(profiles, key=lambda profile: profile.name))
    path.write_bytes(manifest.dump(manifest.Manifest(model="tiny", release="0.1.0", profiles=listed)))


OPENVINO = {
    "backend": "openvino",
    "model_type": "openvino",
    "sku": "cpu-x86-64",
    "cpu_arch": "x86_64",
    "precision": "fp32",
    "tp": "1",
}
GENERIC = {"backend": "onnxruntime", "model_type": "onnx", "sku": "cpu", "precision": "fp32", "tp": "1"}
FIRST, SECOND = "tiny__cpu-x86-64__fp32__tp1", "tiny__cpu__fp32__tp1"  # in the order in which they are tried


@pytest.fixture
def root(tiny: Tiny, tmp_path: Path) -> Path:
    """A manifest root with an OpenVINO profile and the generic one."""
    write_manifest(
        tmp_path,
        [
            add_profile(tmp_path, FIRST, OPENVINO, tiny.files("engine.blob", tiny.blob)),
            add_profile(tmp_path, SECOND, GENERIC, tiny.files("engine.onnx", tiny.onnx)),
        ],
    )
    return tmp_path
