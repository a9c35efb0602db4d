"""What every task looks like to the rest of the server: towers, each with its engine, its batches and their cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from serving.backends.base import Inputs

Item = NDArray[Any]  # what a tower takes of one request entry: token ids (T,), a pair (2, T), pixels (3, S, S)

ONLY = "model"  # the tower of a task that has one engine
# task -> its towers: a profile has one engine for each
TOWERS = {"embed": (ONLY,), "rerank": (ONLY,), "clip": ("text", "image")}


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


def file_stem(tower: str) -> str:
    """The name of a tower's engine file in a profile, without its ending: "engine", "text", "image"."""
    return "engine" if tower == ONLY else tower


def suffixed(name: str, tower: str) -> str:
    """A stage's input or output for one tower: "engine" and "engine.image", "model.onnx" and "image.onnx"."""
    if tower == ONLY:
        return name
    stem, dot, ending = name.partition(".")
    return f"{tower}.{ending}" if (stem, dot) == ("model", ".") else f"{stem}.{tower}{dot}{ending}"
