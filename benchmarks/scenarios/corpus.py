"""Real texts of exact token counts: docstrings of Python's standard library, cut with the model's own tokenizer."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.docstrings import docstrings
from pipelines.errors import EngineryError

MAX_TRIES = 64  # places from which a text of the wanted length is looked for


class TextSource(Protocol):
    """Where the texts of scenarios come from."""

    num_special: int  # tokens that the model adds to a text
    is_exact: bool  # texts have exactly the tokens that are asked for

    def texts(self, lengths: Sequence[int], *, seed: int = 0) -> list[str]:
        """A text for each length in tokens, special ones included; the same arguments give the same texts."""

    def count_pair(self, query: str, passage: str) -> int:
        """Tokens of a query and a passage as a cross-encoder reads them."""


class Corpus:
    """One long stream of words, and texts cut out of it. The same arguments give the same texts."""

    is_exact = True

    def __init__(self, tokenizer: bytes, *, stdlib: Path | None = None) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_buffer(tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.num_special = int(self._tokenizer.num_special_tokens_to_add(False))
        texts = docstrings(stdlib or Path(sysconfig.get_paths()["stdlib"]))
        self._stream = " ".join(" ".join(docstring.text.split()) for docstring in texts)
        self._first_of_word, self._starts, self._ends = self._places()

    def texts(self, lengths: Sequence[int], *, seed: int = 0) -> list[str]:
        """A distinct text for each length, special tokens included. Raises EngineryError for one that is too short.

        They are spread over the stream, in random order, so that they overlap as little as it allows.
        """
        order = np.random.default_rng(seed).permutation(len(lengths))
        step = len(self._first_of_word) / max(1, len(lengths))
        taken: set[str] = set()
        texts = []
        for length, place in zip(lengths, (order * step).astype(int).tolist(), strict=True):
            text = self._near(length - self.num_special, place, taken)
            if text is None:
                raise EngineryError(f"no text of {length} tokens was found in the standard library's docstrings")
            taken.add(text)
            texts.append(text)
        return texts

    def count(self, text: str) -> int:
        """Tokens of a text, special ones included."""
        return len(self._tokenizer.encode(text).ids)

    def count_pair(self, query: str, passage: str) -> int:
        """Tokens of a query and a passage as a cross-encoder reads them."""
        return len(self._tokenizer.encode(query, passage).ids)

    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Tokens that begin a word, the characters where these start, and where each token ends."""
        stream = self._stream
        offsets = np.array(self._tokenizer.encode(stream, add_special_tokens=False).offsets, dtype=np.int64)
        begins = [at == 0 or stream[at - 1] == " " for at in offsets[:, 0].tolist()]
        first = np.flatnonzero(begins)
        return first, offsets[first, 0], offsets[:, 1]

    def _near(self, num_tokens: int, place: int, taken: set[str]) -> str | None:
        """The first text of so many tokens that begins at a word from this place on."""
        num_places = int(np.searchsorted(self._first_of_word, len(self._ends) - num_tokens, side="right"))
        if num_tokens < 1 or num_places < 1:
            return None
        for n in range(MAX_TRIES):
            at = (place + n) % num_places
            last = int(self._first_of_word[at]) + num_tokens - 1
            text = self._stream[int(self._starts[at]) : int(self._ends[last])]
            # A cut inside a word may change how its tokens are read.
            if len(self._tokenizer.encode(text, add_special_tokens=False).ids) == num_tokens and text not in taken:
                return text
        return None
