"""The forms in which vectors are answered: which a model has, which of them a request asks for, and their JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from serving.api.errors import invalid
from serving.tasks.vectors import quantize, shorten

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary"]


@dataclass(frozen=True, kw_only=True)
class VectorForms:
    """What a model's vectors may be."""

    dimension: int
    any_dimension: bool = False  # whether a request may ask for fewer numbers (Matryoshka)
    int8_range: float = 0.0  # the component that int8 maps to 127; 0: neither int8 nor uint8

    @property
    def types(self) -> tuple[EmbeddingType, ...]:
        types: tuple[EmbeddingType, ...] = get_args(EmbeddingType)
        return tuple(kind for kind in types if self.int8_range or kind not in ("int8", "uint8"))

    def dimensions(self, wanted: int | None) -> int:
        """How long the vectors are to be: at most D, and shorter only where the model was trained for it."""
        full = self.dimension
        if wanted is None or wanted == full:
            return full
        if wanted < 1:
            raise invalid(
                f"dimensions is {wanted}; this model gives {full}, and no vector has less than 1", "dimensions"
            )
        if not self.any_dimension:
            raise invalid(f"dimensions is {wanted}, this model gives {full}; leave it out", "dimensions")
        return min(wanted, full)

    def type(self, wanted: EmbeddingType | list[EmbeddingType] | None) -> EmbeddingType:
        """The type of a vector's numbers."""
        if wanted is None:
            return "float"
        kinds = wanted if isinstance(wanted, list) else [wanted]
        if len(kinds) != 1:
            raise invalid(f"embedding_type names {len(kinds)} types; one request gives one", "embedding_type")
        (kind,) = kinds
        if kind not in self.types:
            message = f"embedding_type {kind!r} is not served by this model; float, binary and ubinary are"
            raise invalid(message, "embedding_type")
        return kind


def dump(
    vectors: NDArray[np.float32],
    *,
    dimensions: int,
    kind: EmbeddingType,
    int8_range: float,
    as_base64: bool,
    model: str,
    usage: dict[str, int],
) -> bytes:
    """(N, D) -> the answer's JSON; base64 is of the numbers' own bytes, little-endian."""
    if kind == "float":
        rows: NDArray[Any] = shorten(vectors, dimensions).astype("<f4", copy=False)
    else:  # cut only: made longer again, components would leave int8's range
        rows = quantize(vectors[:, :dimensions], kind, int8_range)
    rows = np.ascontiguousarray(rows)
    written = (pybase64.b64encode_as_string(row.tobytes()) for row in rows) if as_base64 else rows
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(written)]
    answer = {"object": "list", "data": data, "model": model, "usage": usage}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
