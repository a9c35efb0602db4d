"""A tokenizer of the standard library's own words, the texts that it cuts, and one load generator for a whole file."""

from __future__ import annotations

import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from benchmarks.load.job import Generator
from benchmarks.scenarios.corpus import Corpus
from pipelines.datasets.docstrings import docstrings


@pytest.fixture(scope="session")
def tokenizer() -> bytes:
    """WordPiece, as BERT's: frequent words whole, others in pieces; two special tokens around a text."""
    texts = docstrings(Path(sysconfig.get_paths()["stdlib"]))
    counts = Counter(word for docstring in texts for word in docstring.text.lower().split() if word.isalpha())
    letters = sorted({letter for docstring in texts for letter in docstring.text.lower()})
    pieces = [*letters, *(f"##{letter}" for letter in letters), *(word for word, _ in counts.most_common(2000))]
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys(["[UNK]", "[CLS]", "[SEP]", *pieces]))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer.to_str().encode()


@pytest.fixture(scope="session")
def corpus(tokenizer: bytes) -> Corpus:
    return Corpus(tokenizer)


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    with Generator() as started:
        yield started
