"""What every task looks like to the rest of the server: its spec, its towers, and its row of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.contract.profile import ShapeRange
from serving.tasks.golden import ProofReport

Item = NDArray[Any]  # what a tower takes of one request entry: token ids (T,), a pair (2, T), pixels (3, S, S)
Rows = NDArray[np.float32]  # (N, D)

ONLY = "model"  # the tower of a task that has one engine


class Tower(Protocol):
    """One engine of a profile, as its task sees it."""

    @property
    def name(self) -> str:
        """ONLY, or "text" and "image" where a profile has two engines."""

    @property
    def dimension(self) -> int:
        """D of its (B, D) output."""

    @property
    def max_batch(self) -> int:
        """The most items that its engine takes at once."""

    def collate(self, items: Sequence[Item], *, multiple: int = 1) -> Inputs:
        """N items -> the engine's inputs. multiple: the padded width is rounded up to it, so that shapes are few."""

    def cost(self, item: Item, *, multiple: int = 1) -> int:
        """What one item costs the engine, in tokens (of a picture: patches), padding to `multiple` included."""

    def sample(self, num_items: int, num_tokens: int) -> list[Item]:
        """Items to warm the engine up with; num_tokens says nothing to a tower of pictures."""


class Spec(msgspec.Struct, frozen=True, kw_only=True, tag_field="task"):
    """task.json: what the server must know about a model beside its engines and tokenizer. Its tag is its task."""

    served_name: str  # "all-minilm-l6-v2"
    release: str  # "0.1.0"
    max_tokens: int  # of one text, or of a query and its passage together, special tokens included
    pad_token_id: int
    shapes: ShapeRange  # (B, T) of the engine that reads texts

    @property
    def task(self) -> str:
        return str(self.__struct_config__.tag)

    @property
    def towers(self) -> tuple[Tower, ...]:
        raise NotImplementedError

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read a task.json of this very task. Raises msgspec.ValidationError or msgspec.DecodeError."""
        return msgspec.json.decode(data, type=cls)

    def dump(self) -> bytes:
        """Write task.json in canonical bytes."""
        return msgspec.json.encode(self, order="sorted")


class Recorded(NamedTuple):
    """Golden outputs of one tower: what goes into its engine, and what the fp32 reference gave for it."""

    tower: str
    items: Sequence[Item]  # N
    rows: Rows


SpecT = TypeVar("SpecT", bound=Spec)
EncoderT = TypeVar("EncoderT")


@dataclass(frozen=True, kw_only=True)
class Task(Generic[SpecT, EncoderT]):
    """One row of the table of tasks (serving.tasks.table)."""

    spec: type[SpecT]
    towers: tuple[str, ...]  # a profile has one engine for each
    encoder: Callable[[bytes, SpecT], EncoderT]  # tokenizer.json -> what turns requests into items; one per thread
    recorded: Callable[[bytes, EncoderT], tuple[Recorded, ...]]  # of golden.json or proof.json, in the towers' order
    compare: Callable[[Rows, Rows, float], ProofReport]  # an engine's rows, golden rows, least cosine


def file_stem(tower: str) -> str:
    """The name of a tower's engine file in a profile, without its ending: "engine", "text", "image"."""
    return "engine" if tower == ONLY else tower


def suffixed(name: str, tower: str) -> str:
    """A stage's input or output for one tower: "engine" and "engine.image", "model.onnx" and "image.onnx"."""
    if tower == ONLY:
        return name
    stem, dot, ending = name.partition(".")
    return f"{tower}.{ending}" if (stem, dot) == ("model", ".") else f"{stem}.{tower}{dot}{ending}"
