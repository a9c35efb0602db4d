"""Turn texts into token arrays for an embedding engine: the one module that knows this task's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.tasks.base import ONLY, Recorded, Spec, Task
from serving.tasks.golden import Rows, compare_vectors, dump_file, dump_rows, load_rows
from serving.tasks.text import InputType, TextEncoder, Truncate
from serving.tasks.towers import TextTower


class EmbedSpec(Spec, frozen=True, kw_only=True, tag="embed"):
    """task.json of an embedding model."""

    dimension: int  # D
    input_names: tuple[str, ...]  # ("input_ids", "attention_mask", "token_type_ids")
    output_name: str = "embeddings"
    query_prefix: str = ""  # "query: "
    passage_prefix: str = ""
    matryoshka_dimensions: tuple[int, ...] = ()  # not empty: a request may ask for any dimension up to D
    int8_range: float = 0.0  # the largest component of the golden vectors; 0: no int8 or uint8 vectors

    @property
    def towers(self) -> tuple[TextTower, ...]:
        return (
            TextTower(
                dimension=self.dimension,
                pad_token_id=self.pad_token_id,
                input_names=self.input_names,
                shapes=self.shapes,
            ),
        )


class Encoder:
    """Texts to token ids, behind the prefix of what they are. Use one per thread."""

    def __init__(self, tokenizer: bytes, spec: EmbedSpec) -> None:
        self._texts = TextEncoder(tokenizer, spec.max_tokens)
        self._prefixes: dict[InputType | None, str] = {
            None: "",
            "query": spec.query_prefix,
            "passage": spec.passage_prefix,
        }

    def encode(
        self, texts: Sequence[str], *, truncate: Truncate = "NONE", input_type: InputType | None = None
    ) -> list[NDArray[np.int64]]:
        """N texts -> N arrays (T,). Raises TextTooLong (truncate NONE) and TextWithoutTokens."""
        return self._texts.encode(texts, truncate=truncate, prefix=self._prefixes[input_type])


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Golden outputs: texts and the vectors that the fp32 reference gave for them."""

    texts: tuple[str, ...]
    vectors: Rows


class _GoldenFile(msgspec.Struct, frozen=True, kw_only=True):
    texts: tuple[str, ...]
    dimension: int
    vectors: str


def load_golden(data: bytes) -> Golden:
    """Read golden.json or proof.json. Raises ValueError when its parts do not fit together."""
    file = msgspec.json.decode(data, type=_GoldenFile)
    return Golden(texts=file.texts, vectors=load_rows(file.vectors, len(file.texts), file.dimension, "texts"))


def dump_golden(golden: Golden) -> bytes:
    """Write golden outputs in canonical bytes."""
    num_texts, dimension = golden.vectors.shape
    if num_texts != len(golden.texts):
        raise ValueError(f"{len(golden.texts)} texts with {num_texts} vectors")
    return dump_file(_GoldenFile(texts=golden.texts, dimension=dimension, vectors=dump_rows(golden.vectors)))


def _recorded(data: bytes, encoder: Encoder) -> tuple[Recorded, ...]:
    golden = load_golden(data)
    return (Recorded(ONLY, encoder.encode(golden.texts, truncate="END"), golden.vectors),)


TASK = Task(spec=EmbedSpec, towers=(ONLY,), encoder=Encoder, recorded=_recorded, compare=compare_vectors)
