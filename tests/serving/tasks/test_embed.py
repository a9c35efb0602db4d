"""The embed task: texts to arrays, and its files."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from serving.tasks.embed import EmbedSpec, Encoder, Golden, dump_golden, load_golden
from serving.tasks.text import TextTooLong, TextWithoutTokens
from tests.support.profiles import MAX_TOKENS, Tiny

CLS, SEP = 1, 2
LONG = " ".join(f"w{n % 96}" for n in range(100))


def word(n: int) -> int:
    return n + 4


def test_a_text_becomes_its_tokens_between_the_special_ones(tiny: Tiny) -> None:
    (ids,) = Encoder(tiny.tokenizer, tiny.spec).encode(["w0 w5"])
    assert ids.dtype == np.int64
    assert ids.tolist() == [CLS, word(0), word(5), SEP]


def test_a_text_that_is_too_long_names_itself_its_length_and_the_remedy(tiny: Tiny) -> None:
    with pytest.raises(TextTooLong, match=r"Input length 102 exceeds maximum allowed token size 32 \(input 1\).*'END'"):
        Encoder(tiny.tokenizer, tiny.spec).encode(["w0", LONG])


def test_a_text_above_the_character_cap_is_refused_before_the_tokenizer_sees_it(tiny: Tiny) -> None:
    encoder = Encoder(tiny.tokenizer, tiny.spec)
    encoder._texts._tokenizer = None  # reaching it would fail otherwise
    with pytest.raises(TextTooLong, match="10000 characters exceeds maximum allowed token size 32"):
        encoder.encode(["x" * 10_000])


def test_end_keeps_the_first_tokens_and_start_the_last(tiny: Tiny) -> None:
    encoder = Encoder(tiny.tokenizer, tiny.spec)
    (end,) = encoder.encode([LONG], truncate="END")
    (start,) = encoder.encode([LONG], truncate="START")
    assert len(end) == len(start) == MAX_TOKENS
    assert end[:3].tolist() == [CLS, word(0), word(1)]
    assert start[-3:].tolist() == [word(98 % 96), word(99 % 96), SEP]
    assert encoder.encode(["w1"])[0].tolist() == [CLS, word(1), SEP]  # no truncation is left behind


def test_a_prefix_goes_before_the_text_and_survives_both_truncations(tiny: Tiny) -> None:
    spec = msgspec.structs.replace(tiny.spec, query_prefix="w90 w91 ")
    encoder = Encoder(tiny.tokenizer, spec)
    assert encoder.encode(["w1"], input_type="query")[0].tolist() == [CLS, word(90), word(91), word(1), SEP]
    assert encoder.encode(["w1"], input_type="passage")[0].tolist() == [CLS, word(1), SEP]
    for truncate, last in (("END", word(27)), ("START", word(3))):
        (ids,) = encoder.encode([LONG], truncate=truncate, input_type="query")  # type: ignore[arg-type]
        assert len(ids) == MAX_TOKENS
        assert ids[:3].tolist() == [CLS, word(90), word(91)]
        assert ids[-2] == last


def test_a_text_of_no_tokens_is_refused(tiny: Tiny) -> None:
    bare = Tokenizer.from_buffer(tiny.tokenizer)
    bare.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    encoder = Encoder(bare.to_str().encode(), tiny.spec)
    with pytest.raises(TextWithoutTokens, match="input 1"):
        encoder.encode(["w1", "   "])


def test_spec_and_golden_outputs_survive_their_files(tiny: Tiny) -> None:
    assert EmbedSpec.load(tiny.spec.dump()) == tiny.spec
    again = load_golden(dump_golden(tiny.golden))
    assert again.texts == tiny.golden.texts
    assert np.array_equal(again.vectors, tiny.golden.vectors)
    assert dump_golden(again) == dump_golden(tiny.golden)


def test_golden_outputs_whose_parts_do_not_fit_are_refused() -> None:
    good = dump_golden(Golden(texts=("a", "b"), vectors=np.ones((2, 3), np.float32)))
    with pytest.raises(ValueError, match="6 numbers for 2 texts of dimension 4"):
        load_golden(good.replace(b'"dimension":3', b'"dimension":4'))
