"""The embed task: texts to arrays, and its files."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from serving.tasks import spec as spec_file
from serving.tasks.base import TOWERS
from serving.tasks.embed import (
    EmbedSpec,
    Encoder,
    Golden,
    TextTooLong,
    TextWithoutTokens,
    collate,
    dump_golden,
    dump_spec,
    load_golden,
    load_spec,
)
from serving.tasks.vectors import BadVectors, check_vectors
from tests.support.profiles import DIMENSION, MAX_TOKENS, Tiny
from tests.support.tiny_models import embedder, reranker, see_and_read

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
    encoder._tokenizer = None  # reaching it would fail otherwise
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


def test_collating_pads_on_the_right_to_the_longest(tiny: Tiny) -> None:
    inputs = collate([np.array([1, 7, 2]), np.array([1, 2])], tiny.spec)
    assert inputs["input_ids"].tolist() == [[1, 7, 2], [1, 2, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert set(inputs) == {"input_ids", "attention_mask"}
    named = msgspec.structs.replace(tiny.spec, input_names=("token_type_ids", "input_ids"))
    assert collate([np.array([1, 2])], named)["token_type_ids"].tolist() == [[0, 0]]


@pytest.mark.parametrize(("longest", "width"), [(1, 16), (16, 16), (17, 32), (32, 32)])
def test_a_width_may_be_rounded_up_but_never_beyond_the_engine(tiny: Tiny, longest: int, width: int) -> None:
    inputs = collate([np.ones(longest, np.int64)], tiny.spec, multiple=16)
    assert inputs["input_ids"].shape == (1, width)
    assert inputs["attention_mask"].sum() == longest
    assert collate([np.ones(30, np.int64)], tiny.spec, multiple=40)["input_ids"].shape == (1, MAX_TOKENS)


def test_spec_and_golden_outputs_survive_their_files(tiny: Tiny) -> None:
    assert load_spec(dump_spec(tiny.spec)) == tiny.spec
    again = load_golden(dump_golden(tiny.golden))
    assert again.texts == tiny.golden.texts
    assert np.array_equal(again.vectors, tiny.golden.vectors)
    assert dump_golden(again) == dump_golden(tiny.golden)


def test_a_task_file_of_the_first_release_is_still_read() -> None:
    old = (
        b'{"dimension":384,"input_names":["input_ids","attention_mask"],"max_tokens":256,"output_name":"embeddings",'
        b'"pad_token_id":0,"passage_prefix":"","query_prefix":"","release":"0.1.0","served_name":"all-minilm-l6-v2",'
        b'"shapes":{"max":[32,256],"min":[1,1],"opt":[8,64]},"task":"embed"}'
    )
    spec = spec_file.load_spec(old)
    assert spec == load_spec(old)
    assert isinstance(spec, EmbedSpec)
    assert (spec.dimension, spec.shapes.opt, spec.matryoshka_dimensions, spec.int8_range) == (384, (8, 64), (), 0.0)


@pytest.mark.parametrize("task", TOWERS)
def test_the_spec_of_every_task_survives_its_file_and_names_its_towers(task: str, tiny: Tiny) -> None:
    model = {"embed": lambda: embedder(tiny), "rerank": reranker, "clip": see_and_read}[task]()
    written = spec_file.dump_spec(model.spec)
    assert spec_file.load_spec(written) == model.spec
    assert spec_file.dump_spec(spec_file.load_spec(written)) == written
    assert (model.spec.task, json.loads(written)["task"]) == (task, task)
    assert tuple(tower.name for tower in model.spec.towers) == TOWERS[task]
    for field in ("served_name", "release", "max_tokens", "pad_token_id", "shapes"):
        assert hasattr(model.spec, field)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "sing"}, "sing"),
        ({"task": None}, "task"),
        ({"max_tokens": "32"}, r"\$\.max_tokens"),
        ({}, "dimension"),
    ],
)
def test_a_task_file_that_is_wrong_names_the_place(tiny: Tiny, change: dict[str, object], words: str) -> None:
    content = json.loads(dump_spec(tiny.spec)) | change
    if not change:
        del content["dimension"]
    with pytest.raises(msgspec.ValidationError, match=words):
        spec_file.load_spec(json.dumps(content).encode())


def test_golden_outputs_whose_parts_do_not_fit_are_refused() -> None:
    good = dump_golden(Golden(texts=("a", "b"), vectors=np.ones((2, 3), np.float32)))
    with pytest.raises(ValueError, match="6 numbers for 2 texts of dimension 4"):
        load_golden(good.replace(b'"dimension":3', b'"dimension":4'))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_vectors_that_are_zero_or_not_finite_must_not_be_served(bad: float) -> None:
    vectors = np.ones((3, DIMENSION), np.float32)
    check_vectors(vectors, 3, DIMENSION)
    vectors[1] = bad
    with pytest.raises(BadVectors, match="1 of 3 vectors"):
        check_vectors(vectors, 3, DIMENSION)
    with pytest.raises(BadVectors, match="for 3 items of dimension 16"):
        check_vectors(vectors[:, :4], 3, DIMENSION)
