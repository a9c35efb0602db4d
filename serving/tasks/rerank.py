"""Turn a query and passages into token arrays for a cross-encoder: the one module that knows this task's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.tasks.base import ONLY, Recorded, Spec, Task
from serving.tasks.golden import compare_scores, dump_file, dump_rows, load_numbers
from serving.tasks.text import (
    TextTooLong,
    TextWithoutTokens,
    Truncate,
    check_characters,
    kept_characters,
    load_tokenizer,
)
from serving.tasks.towers import TextTower


class RerankSpec(Spec, frozen=True, kw_only=True, tag="rerank"):
    """task.json of a reranker."""

    input_names: tuple[str, ...]
    output_name: str = "scores"  # (B, 1) logits

    @property
    def towers(self) -> tuple[TextTower, ...]:
        return (
            TextTower(dimension=1, pad_token_id=self.pad_token_id, input_names=self.input_names, shapes=self.shapes),
        )


class Encoder:
    """Pairs to token ids. Use one per thread."""

    def __init__(self, tokenizer: bytes, spec: RerankSpec) -> None:
        self._tokenizer, self._max_tokens = load_tokenizer(tokenizer), spec.max_tokens
        self._num_special = self._tokenizer.num_special_tokens_to_add(True)

    def encode(self, query: str, passages: Sequence[str], *, truncate: Truncate = "NONE") -> list[NDArray[np.int64]]:
        """One query, N passages -> N arrays (2, T): ids and token types, in order.

        END cuts passages from the right, START from the left; the query is cut, on the same side, only when it
        leaves no room for one token of a passage. Raises TextTooLong and TextWithoutTokens, with the passage's index.
        """
        limit = self._max_tokens
        if truncate == "NONE":
            check_characters((len(query) + len(passage) for passage in passages), limit)
        else:
            kept = kept_characters(limit, truncate)
            query, passages = query[kept], [passage[kept] for passage in passages]
        # Once, and not with each passage: a long query beside many passages is cheap to send.
        query_tokens = self._tokenizer.encode(query, add_special_tokens=False)
        if truncate != "NONE" and len(query_tokens.ids) > 2 * limit:
            query = _shortened(query, query_tokens.offsets, 2 * limit, truncate)
            query_tokens = self._tokenizer.encode(query, add_special_tokens=False)
        items = []
        for index, tokens in enumerate(self._tokenizer.encode_batch_fast(list(passages), add_special_tokens=False)):
            pair = self._tokenizer.post_process(query_tokens, tokens)
            item = np.array([pair.ids, pair.type_ids], dtype=np.int64)
            excess = item.shape[1] - limit
            if item.shape[1] <= self._num_special:
                raise TextWithoutTokens(index)
            if excess > 0 and truncate == "NONE":
                raise TextTooLong(index=index, length=item.shape[1], limit=limit)
            items.append(item if excess <= 0 else item[:, _kept(pair, excess, truncate)])
        return items


def _shortened(query: str, offsets: Sequence[tuple[int, int]], num_tokens: int, truncate: Truncate) -> str:
    """The end of a query that stays, about num_tokens long. A word that this cuts has other tokens than before."""
    return query[: offsets[num_tokens - 1][1]] if truncate == "END" else query[offsets[-num_tokens][0] :]


def _kept(pair: Any, excess: int, truncate: Truncate) -> NDArray[np.bool_]:
    """(T,): the tokens of a pair that stay when `excess` of them go: the passage's, all but one, then the query's.

    Not by the tokenizer's own truncation: it keeps every piece that it cuts off, each behind the whole query
    (gigabytes for a long query), and raises when the query alone is too long.
    """
    of_passage = np.array([sequence == 1 for sequence in pair.sequence_ids])
    of_query = (np.array(pair.special_tokens_mask) == 0) & ~of_passage  # post_process forgets its sequence_ids
    kept = np.ones(of_passage.size, dtype=np.bool_)
    for own, spared in ((of_passage, 1), (of_query, 0)):
        places = np.flatnonzero(own)
        num_gone = max(0, min(excess, places.size - spared))
        kept[places[places.size - num_gone :] if truncate == "END" else places[:num_gone]] = False
        excess -= num_gone
    return kept


@dataclass(frozen=True, kw_only=True)
class GoldenPairs:
    """Golden outputs: pairs of query and passage, and the scores that the fp32 reference gave for them."""

    pairs: tuple[tuple[str, str], ...]
    scores: NDArray[np.float32]  # (N,)


class _GoldenFile(msgspec.Struct, frozen=True, kw_only=True):
    pairs: tuple[tuple[str, str], ...]
    scores: str


def load_golden(data: bytes) -> GoldenPairs:
    """Read golden.json or proof.json. Raises ValueError when its parts do not fit together."""
    file = msgspec.json.decode(data, type=_GoldenFile)
    scores = load_numbers(file.scores)
    if scores.size != len(file.pairs):
        raise ValueError(f"golden outputs hold {scores.size} scores for {len(file.pairs)} pairs")
    return GoldenPairs(pairs=file.pairs, scores=scores)


def dump_golden(golden: GoldenPairs) -> bytes:
    """Write golden outputs in canonical bytes."""
    if golden.scores.shape != (len(golden.pairs),):
        raise ValueError(f"{len(golden.pairs)} pairs with scores of shape {golden.scores.shape}")
    return dump_file(_GoldenFile(pairs=golden.pairs, scores=dump_rows(golden.scores)))


def _recorded(data: bytes, encoder: Encoder) -> tuple[Recorded, ...]:
    golden = load_golden(data)
    items = [encoder.encode(query, [passage], truncate="END")[0] for query, passage in golden.pairs]
    return (Recorded(ONLY, items, golden.scores[:, None]),)


TASK = Task(spec=RerankSpec, towers=(ONLY,), encoder=Encoder, recorded=_recorded, compare=compare_scores)
