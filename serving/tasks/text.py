"""Texts as token arrays: what every task that reads text shares. Knows padding and limits, no task's meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.backends.base import Inputs
from serving.contract.profile import ShapeRange
from serving.tasks.base import ONLY, Item

Truncate = Literal["NONE", "START", "END"]
InputType = Literal["query", "passage"]

# A text longer than this cannot fit and is not worth tokenising (the limit text-embeddings-inference uses).
MAX_CHARS_PER_TOKEN = 250


class TextTooLong(ValueError):
    """A text that does not fit and may not be truncated. Clients look for 'exceeds maximum allowed token size'."""

    def __init__(
        self, *, index: int, length: int, limit: int, unit: Literal["tokens", "characters"] = "tokens"
    ) -> None:
        self.index, self.length, self.limit, self.unit = index, length, limit, unit
        counted = f"{length}" if unit == "tokens" else f"{length} characters"
        super().__init__(
            f"Input length {counted} exceeds maximum allowed token size {limit} (input {index}); "
            "shorten the text, or set truncate to 'END' or 'START'"
        )

    def at(self, index: int) -> TextTooLong:
        """The same, of the text that has this place in the whole request."""
        return TextTooLong(index=index, length=self.length, limit=self.limit, unit=self.unit)


class TextWithoutTokens(ValueError):
    """A text of which the tokenizer keeps nothing: there is no vector for it."""

    def __init__(self, index: int) -> None:
        self.index = index
        super().__init__(f"input {index} is empty or holds no token of this model; send some text")


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


def round_up(num_tokens: int, multiple: int, most: int) -> int:
    """The next step, but no more than the engine's largest T, nor less than the tokens.

    A step is `multiple` tokens, of texts of 64 tokens and more an eighth of their length's power of two, and no more
    than four multiples: an engine prepares kernels for each width and keeps them, and a third of the widths cost 3 %.
    """
    step = min(4 * multiple, max(multiple, (1 << num_tokens.bit_length() >> 4))) if multiple > 1 else 1
    return max(num_tokens, min(-(-num_tokens // step) * step, most))
