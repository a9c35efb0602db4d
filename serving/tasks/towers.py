"""The kinds of engine that tasks are made of: one reads token ids, one sees pictures. Knows padding and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.backends.base import Inputs
from serving.contract.profile import ShapeRange
from serving.tasks.base import ONLY, Item


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """An engine that reads token ids, (B, T) int64 each. An item is (T,) ids, or (2, T): ids and token types."""

    name: str = ONLY
    dimension: int
    pad_token_id: int
    input_names: tuple[str, ...]  # ("input_ids", "attention_mask", "token_type_ids")
    shapes: ShapeRange

    @property
    def max_batch(self) -> int:
        return self.shapes.max[0]

    def collate(self, items: Sequence[Item], *, multiple: int = 1) -> Inputs:
        """N items -> the engine's inputs, each (N, T): padded on the right to the longest."""
        width = max(max(self.cost(item, multiple=multiple) for item in items), self.shapes.min[1])
        ids = np.full((len(items), width), self.pad_token_id, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, item in enumerate(items):
            length = item.shape[-1]
            ids[row, :length] = item if item.ndim == 1 else item[0]
            mask[row, :length] = 1
            if item.ndim == 2:
                types[row, :length] = item[1]
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: arrays[name] for name in self.input_names}

    def cost(self, item: Item, *, multiple: int = 1) -> int:
        return round_up(item.shape[-1], multiple, self.shapes.max[1])

    def sample(self, num_items: int, num_tokens: int) -> list[Item]:
        return [np.full(num_tokens, self.pad_token_id, dtype=np.int64)] * num_items


@dataclass(frozen=True, kw_only=True)
class ImageTower:
    """An engine that sees pictures, pixel_values (B, 3, S, S) float32. An item is (3, S, S)."""

    name: str
    dimension: int
    image_size: int
    num_patches: int
    max_batch: int

    def collate(self, items: Sequence[Item], *, multiple: int = 1) -> Inputs:
        return {"pixel_values": np.stack(items).astype(np.float32, copy=False)}

    def cost(self, item: Item, *, multiple: int = 1) -> int:
        return self.num_patches

    def sample(self, num_items: int, num_tokens: int) -> list[Item]:
        return [np.zeros((3, self.image_size, self.image_size), dtype=np.float32)] * num_items


def round_up(num_tokens: int, multiple: int, most: int) -> int:
    """The next step, but no more than the engine's largest T, nor less than the tokens.

    A step is `multiple` tokens, of texts of 64 tokens and more an eighth of their length's power of two, and no more
    than four multiples: an engine prepares kernels for each width and keeps them, and a third of the widths cost 3 %.
    """
    step = min(4 * multiple, max(multiple, (1 << num_tokens.bit_length() >> 4))) if multiple > 1 else 1
    return max(num_tokens, min(-(-num_tokens // step) * step, most))
