"""Texts to token ids, within limits: what every task that reads text shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

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


def load_tokenizer(data: bytes) -> Any:
    """tokenizer.json -> a tokenizer that neither pads nor truncates."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(data)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def check_characters(lengths: Iterable[int], max_tokens: int) -> None:
    """Raise TextTooLong for the first text of so many characters that cannot fit."""
    for index, length in enumerate(lengths):
        if length > max_tokens * MAX_CHARS_PER_TOKEN:
            raise TextTooLong(index=index, length=length, limit=max_tokens, unit="characters")


def kept_characters(max_tokens: int, truncate: Truncate) -> slice:
    """The part of a text that truncation can leave: no more than this is tokenised."""
    max_chars = max_tokens * MAX_CHARS_PER_TOKEN
    return slice(None, max_chars) if truncate == "END" else slice(-max_chars, None)


class TextEncoder:
    """Texts to token ids. Not thread-safe: the tokenizer holds its truncation setting, so use one per thread."""

    def __init__(self, tokenizer: bytes, max_tokens: int) -> None:
        self._tokenizer, self._max_tokens = load_tokenizer(tokenizer), max_tokens

    def encode(self, texts: Sequence[str], *, truncate: Truncate = "NONE", prefix: str = "") -> list[NDArray[np.int64]]:
        """N texts -> N arrays (T,) of token ids, the prefix before each and special tokens included, in order.

        Raises TextTooLong (truncate NONE) and TextWithoutTokens.
        """
        limit = self._max_tokens
        if truncate == "NONE":
            check_characters(map(len, texts), limit)
            self._tokenizer.no_truncation()
        else:
            kept = kept_characters(limit, truncate)
            texts = [text[kept] for text in texts]
            if prefix and truncate == "START":  # the model needs its prefix: make room for it instead of cutting it off
                texts = [self._tail(text, prefix) for text in texts]
            self._tokenizer.enable_truncation(limit, direction="right" if prefix or truncate == "END" else "left")
        encodings = self._tokenizer.encode_batch_fast([prefix + text for text in texts])
        items = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        for index, ids in enumerate(items):
            if ids.size == 0:
                raise TextWithoutTokens(index)
            if ids.size > limit:
                raise TextTooLong(index=index, length=int(ids.size), limit=limit)
        return items

    def _tail(self, text: str, prefix: str) -> str:
        """The end of a text that fits behind its prefix."""
        self._tokenizer.no_truncation()
        num_prefix = len(self._tokenizer.encode(prefix, add_special_tokens=False).ids)
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        num_kept = max(1, self._max_tokens - self._tokenizer.num_special_tokens_to_add(False) - num_prefix)
        return text if len(offsets) <= num_kept else text[offsets[-num_kept][0] :]
