"""The clip task: captions and pictures to the arrays of two engines, and its files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from serving.tasks.clip import ClipSpec, Encoder, GoldenClip, dump_golden, load_golden
from serving.tasks.images import BadImage
from serving.tasks.text import TextTooLong, TextWithoutTokens
from tests.support.profiles import MAX_TOKENS
from tests.support.tiny_models import Model, picture, see_and_read


@pytest.fixture(scope="module")
def model() -> Model:
    return see_and_read()


def test_a_bad_picture_is_named_by_its_place(model: Model) -> None:
    with pytest.raises(BadImage, match="picture 2: it is neither") as caught:
        encoder(model).encode_images([picture(0), picture(1), b"no"])
    assert caught.value.index == 2


def encoder(model: Model) -> Encoder:
    assert isinstance(model.spec, ClipSpec)
    return Encoder(model.tokenizer, model.spec)


def test_captions_are_cut_on_the_side_that_is_asked_for_and_refused_otherwise(model: Model) -> None:
    long = " ".join(f"w{n}" for n in range(50))
    chosen = encoder(model)
    with pytest.raises(TextTooLong, match=r"Input length 52 exceeds maximum allowed token size 32 \(input 1\)"):
        chosen.encode_texts(["w1", long])
    with pytest.raises(TextTooLong, match="100000 characters exceeds maximum allowed token size 32"):
        chosen.encode_texts(["x" * 100_000])
    (end,), (start,) = (chosen.encode_texts([long], truncate="END"), chosen.encode_texts([long], truncate="START"))
    assert len(end) == len(start) == MAX_TOKENS
    assert (end[1], start[-2]) == (4, 53)  # w0 and w49, beside the special tokens
    assert chosen.encode_texts(["w1"])[0].tolist() == [1, 5, 2]


def test_a_caption_of_no_tokens_is_refused(model: Model) -> None:
    tokenizer = json.loads(model.tokenizer)
    tokenizer["post_processor"] = None
    assert isinstance(model.spec, ClipSpec)
    with pytest.raises(TextWithoutTokens, match="input 1"):
        Encoder(json.dumps(tokenizer).encode(), model.spec).encode_texts(["w1", " "])


def test_the_two_towers_take_what_the_encoder_gives(model: Model) -> None:
    text, image = model.spec.towers
    assert (text.name, image.name) == ("text", "image")
    items = encoder(model).encode_images([picture(0), picture(1)])
    inputs = image.collate(items)
    assert inputs["pixel_values"].shape == (2, 3, 8, 8)
    assert inputs["pixel_values"].dtype == np.float32
    assert image.cost(items[0]) == 4
    assert image.collate(image.sample(3, 999))["pixel_values"].shape == (3, 3, 8, 8)
    assert set(text.collate(encoder(model).encode_texts(["w1"]))) == {"input_ids", "attention_mask"}


def golden() -> GoldenClip:
    rng = np.random.default_rng(0)
    return GoldenClip(
        texts=("a", "b", "c"),
        text_vectors=rng.normal(size=(3, 4)).astype(np.float32),
        images=(picture(0), picture(1)),
        image_vectors=rng.normal(size=(2, 4)).astype(np.float32),
    )


def test_golden_captions_and_pictures_survive_their_file() -> None:
    again = load_golden(dump_golden(golden()))
    assert (again.texts, again.images) == (golden().texts, golden().images)
    assert np.array_equal(again.text_vectors, golden().text_vectors)
    assert np.array_equal(again.image_vectors, golden().image_vectors)
    assert dump_golden(again) == dump_golden(golden())


def test_golden_files_whose_parts_do_not_fit_are_refused_both_ways() -> None:
    file = json.loads(dump_golden(golden()))
    with pytest.raises(ValueError, match="12 numbers for 2 texts of dimension 4"):
        load_golden(json.dumps(file | {"texts": ["a", "b"]}).encode())
    with pytest.raises(ValueError, match="8 numbers for 1 pictures of dimension 4"):
        load_golden(json.dumps(file | {"images": file["images"][:1]}).encode())
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\), not \(\(1, 4\), \(2, 4\)\)"):
        dump_golden(replace(golden(), texts=("a",)))
