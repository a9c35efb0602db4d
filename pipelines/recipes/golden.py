"""What recipes share in recording a model's answers: its tokenizer, its limits, and the part of them that ships."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ExportError

NUM_PROOF_ITEMS = 32  # they ship, and every server's start runs them
NO_TOKENIZER = (
    "so that no fast tokenizer can read its texts; "
    "make it with AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(…)"
)


def read_tokenizer(folder: Path) -> bytes:
    """tokenizer.json as it is. Raises ExportError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ExportError(f"{folder.name}: tokenizer.json is missing, {NO_TOKENIZER}")
    return path.read_bytes()


def load_tokenizer(folder: Path) -> Any:
    """The model's own fast tokenizer, as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)


def max_tokens_problem(max_tokens: int | None, limit: int) -> str | None:
    """Why the matrix's max_tokens does not fit its shapes.max."""
    if max_tokens is None or max_tokens <= limit:
        return None
    return f"max_tokens is {max_tokens}, shapes.max has {limit} tokens; lower the one or raise the other"


def check_tokens(texts: Sequence[str], served: Sequence[NDArray[Any]], expected: Sequence[Sequence[int]]) -> None:
    """Raise ExportError where the server, which reads tokenizer.json alone, has other tokens than transformers.

    Some models keep settings of the tokenizer in other files.
    """
    for text, ours, theirs in zip(texts, served, expected, strict=True):
        if ours.tolist() != list(theirs):
            raise ExportError(
                f"tokenizer.json alone gives other tokens than transformers for {text[:60]!r}: {ours[:8].tolist()}… "
                f"and {list(theirs[:8])}…; save the tokenizer again with save_pretrained, so that it is complete"
            )


def spread(num: int, most: int) -> list[int]:
    """At most so many of num indices, evenly from the first to the last."""
    return sorted({int(i) for i in np.linspace(0, num - 1, min(most, num)).round()})


def spread_by_length(lengths: Sequence[int], most: int) -> list[int]:
    """At most so many indices, ascending, of items evenly from the shortest to the longest."""
    by_length = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return sorted(by_length[i] for i in spread(len(lengths), most))
