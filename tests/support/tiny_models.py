"""Tiny real models of the other two tasks: a cross-encoder that attends, and a CLIP of 8 x 8 pixels."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from serving.backends.base import LoadOptions
from serving.backends.onnxruntime import OnnxRuntime
from serving.backends.onnxruntime import load as load_onnx
from serving.contract.profile import Precision, ShapeRange
from serving.start.prove import rows
from serving.tasks import clip, rerank
from serving.tasks.base import ONLY, Spec, file_stem
from tests.support.profiles import MAX_TOKENS, WORDS, Tiny, tiny_onnx, tiny_tokenizer

DIMENSION = 16
IMAGE_SIZE = 8
NORMAL = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))  # mean, standard deviation


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a server needs of a model of any task."""

    spec: Spec
    tokenizer: bytes
    engines: Mapping[str, bytes]  # tower -> ONNX
    proof: bytes

    def files(self) -> dict[str, bytes]:
        """Of its generic profile."""
        engines = {f"{file_stem(tower)}.onnx": engine for tower, engine in self.engines.items()}
        task = self.spec.dump()
        return {**engines, "tokenizer.json": self.tokenizer, "task.json": task, "proof.json": self.proof}

    def backend(self, tower: str) -> OnnxRuntime:
        return load_onnx(self.engines[tower], LoadOptions(precision=Precision.FP32, num_threads=1))


def embedder(tiny: Tiny) -> Model:
    files = tiny.files("engine.onnx", tiny.onnx)
    return Model(spec=tiny.spec, tokenizer=tiny.tokenizer, engines={ONLY: tiny.onnx}, proof=files["proof.json"])


def reranker() -> Model:
    spec = rerank.RerankSpec(
        served_name="tiny-rerank",
        release="0.1.0",
        max_tokens=MAX_TOKENS,
        pad_token_id=0,
        input_names=("input_ids", "attention_mask", "token_type_ids"),
        shapes=ShapeRange(min=(1, 1), opt=(4, 16), max=(8, MAX_TOKENS)),
    )
    engine, tokenizer = cross_encoder_onnx(), pair_tokenizer()
    backend = load_onnx(engine, LoadOptions(precision=Precision.FP32, num_threads=1))
    pairs = tuple((f"w{n} w{n + 1}", f"w{2 * n} w{n} w{90 - n}") for n in range(6))
    items = [rerank.Encoder(tokenizer, spec).encode(query, [passage])[0] for query, passage in pairs]
    scores = rows(backend.infer, spec.towers[0], items)[:, 0]
    proof = rerank.dump_golden(rerank.GoldenPairs(pairs=pairs, scores=scores))
    return Model(spec=spec, tokenizer=tokenizer, engines={ONLY: engine}, proof=proof)


def see_and_read() -> Model:
    mean, std = NORMAL
    spec = clip.ClipSpec(
        served_name="tiny-clip",
        release="0.1.0",
        dimension=DIMENSION,
        max_tokens=MAX_TOKENS,
        pad_token_id=0,
        text_input_names=("input_ids", "attention_mask"),
        image_size=IMAGE_SIZE,
        image_mean=mean,
        image_std=std,
        num_patches=4,
        max_images=4,
        shapes=ShapeRange(min=(1, 1), opt=(4, 16), max=(8, MAX_TOKENS)),
    )
    engines, tokenizer = {clip.TEXT: tiny_onnx(3), clip.IMAGE: picture_onnx()}, tiny_tokenizer()
    backends = {
        tower: load_onnx(engine, LoadOptions(precision=Precision.FP32, num_threads=1))
        for tower, engine in engines.items()
    }
    texts, images = tuple(f"w{n} w{n * 2}" for n in range(4)), tuple(picture(n) for n in range(3))
    encoder = clip.Encoder(tokenizer, spec)
    text, image = spec.towers
    golden = clip.GoldenClip(
        texts=texts,
        text_vectors=rows(backends[clip.TEXT].infer, text, encoder.encode_texts(texts)),
        images=images,
        image_vectors=rows(backends[clip.IMAGE].infer, image, encoder.encode_images(images)),
    )
    return Model(spec=spec, tokenizer=tokenizer, engines=engines, proof=clip.dump_golden(golden))


def picture(seed: int, size: tuple[int, int] = (12, 9), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pair_tokenizer() -> bytes:
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return bytes(tokenizer.to_str().encode())


def cross_encoder_onnx() -> bytes:
    """Words and types -> one head of attention -> mean over the mask -> a logit of a few units: (B, T) -> (B, 1)."""
    rng = np.random.default_rng(7)
    width = 32

    def weights(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    constants: Mapping[str, NDArray[np.generic]] = {
        "table": weights(len(WORDS), width),
        "type_table": weights(2, width),
        "wq": weights(width, width, scale=0.2),
        "wk": weights(width, width, scale=0.2),
        "wv": weights(width, width, scale=0.2),
        "out": weights(width, 1, scale=2.0),
        "last": np.array([2], np.int64),
        "middle": np.array([1], np.int64),
        "one": np.array(1, np.float32),
        "far": np.array(10_000, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Gather", ["type_table", "token_type_ids"], ["types"]),
        helper.make_node("Add", ["words", "types"], ["states"]),
        helper.make_node("MatMul", ["states", "wq"], ["q"]),
        helper.make_node("MatMul", ["states", "wk"], ["k"]),
        helper.make_node("MatMul", ["states", "wv"], ["v"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["mask", "one"], ["hidden"]),
        helper.make_node("Mul", ["hidden", "far"], ["bias"]),
        helper.make_node("Unsqueeze", ["bias", "middle"], ["wide_bias"]),
        helper.make_node("Add", ["scores", "wide_bias"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["attention"], axis=-1),
        helper.make_node("MatMul", ["attention", "v"], ["context"]),
        helper.make_node("Tanh", ["context"], ["bent"]),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["bent", "wide_mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "middle"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "out"], ["scores_out"]),
    ]
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in names]
    return _model(nodes, inputs, helper.make_tensor_value_info("scores_out", TensorProto.FLOAT, ["B", 1]), constants)


def picture_onnx() -> bytes:
    """Pixels -> product -> length 1: (B, 3, S, S) -> (B, D)."""
    rng = np.random.default_rng(8)
    constants = {
        "weight": rng.normal(size=(3 * IMAGE_SIZE**2, DIMENSION)).astype(np.float32),
        "middle": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Flatten", ["pixel_values"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], ["seen"]),
        helper.make_node("ReduceL2", ["seen", "middle"], ["norm"], keepdims=1),
        helper.make_node("Div", ["seen", "norm"], ["embeddings"]),
    ]
    shape = ["B", 3, IMAGE_SIZE, IMAGE_SIZE]
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)]
    return _model(
        nodes, inputs, helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", DIMENSION]), constants
    )


def _model(
    nodes: list[onnx.NodeProto], inputs: list[object], output: object, constants: Mapping[str, NDArray[np.generic]]
) -> bytes:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
