"""What recipes share: the proof that ships, a fast tokenizer that is there, and tokens that are the model's own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ExportError
from pipelines.recipes import golden
from serving.tasks.embed import EmbedSpec, Encoder, load_golden


@pytest.mark.slow
def test_the_proof_is_a_part_of_the_golden_outputs_from_the_shortest_to_the_longest(
    exported: Mapping[str, Path],
) -> None:
    whole, proof = (load_golden(exported[name].read_bytes()) for name in ("golden.json", "proof.json"))
    assert len(proof.texts) == golden.NUM_PROOF_ITEMS
    index = [whole.texts.index(text) for text in proof.texts]
    assert np.array_equal(whole.vectors[index], proof.vectors)
    lengths = [len(text) for text in proof.texts]
    assert min(lengths) < 60
    assert max(lengths) > 1000


@pytest.mark.slow
def test_a_model_without_a_fast_tokenizer_is_refused(tiny_model: Path, texts_json: Path, tmp_path: Path) -> None:
    copy = tmp_path / "slow-bert"
    shutil.copytree(tiny_model, copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"tokenizer\.json is missing"):
        golden.read_tokenizer(copy)


@pytest.mark.slow
def test_a_tokenizer_that_is_not_whole_in_its_file_is_refused(exported: Mapping[str, Path], tmp_path: Path) -> None:
    spec = EmbedSpec.load(exported["task.json"].read_bytes())
    encoder = Encoder(exported["tokenizer.json"].read_bytes(), spec)
    with pytest.raises(ExportError, match="other tokens than transformers for 'the file'"):
        golden.check_tokens(["the file"], encoder.encode(["the file"]), [[1, 2, 3]])
