"""examples/rerank/train.py: what it trains on, and what it writes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from pipelines.datasets import docstrings
from pipelines.datasets.docstrings import Texts
from pipelines.recipes import rerank

SCRIPT = Path(__file__).parents[2] / "examples/rerank/train.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_reranker", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def judged() -> Texts:
    return docstrings.split(docstrings.docstrings(Path(sysconfig.get_paths()["stdlib"])))


def test_nothing_that_it_is_judged_on_is_trained_on(
    script: ModuleType, judged: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(query: str, passage: str) -> str:
        return f"def f():\n    {query + '.' + chr(10) * 2 + passage!r}\n"

    own = " ".join(f"word{n}" for n in range(20))
    package = tmp_path / "numpy"
    package.mkdir()
    (package / "a.py").write_text(source("Copy everything of this", own))
    (package / "b.py").write_text(source(judged.queries[3], own + " and more"))
    (package / "c.py").write_text(source("Another thing to do", judged.passages[5]))
    (package / "broken.py").write_text("def (")
    monkeypatch.setattr(script.site, "getsitepackages", lambda: [str(tmp_path)])
    assert script.training_pairs(judged) == [("Copy everything of this", own)]


def test_without_any_package_it_says_what_it_looked_for(
    script: ModuleType, judged: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.site, "getsitepackages", lambda: [str(tmp_path)])
    with pytest.raises(SystemExit, match=r"none of numpy, scipy, .* is installed here"):
        script.training_pairs(judged)


def test_every_query_is_offered_its_own_passage_first_and_wrong_ones_after(script: ModuleType) -> None:
    pairs = [(f"query about w{n}", f"passage about w{n} and w{n + 1}") for n in range(40)]
    given = dict(pairs)
    found = list(script.batches(pairs, 5))
    assert len(found) == 5
    for queries, passages in found:
        assert len(queries) == len(passages) == script.QUERIES_PER_STEP * script.PASSAGES_PER_QUERY
        for place, (query, passage) in enumerate(zip(queries, passages, strict=True)):
            assert (passage == given[query]) == (place % script.PASSAGES_PER_QUERY == 0)
    assert found == list(script.batches(pairs, 5)), "the same at every run"


@pytest.mark.slow
def test_a_few_steps_write_a_whole_model_folder_and_tell_its_ndcg(tmp_path: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "old").touch()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--steps", "2", "--queries", "4", "--output", str(output)],
        cwd=SCRIPT.parents[2],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for told in ("BM25", "bi-encoder all-MiniLM-L6-v2", "untrained head", "trained"):
        assert f"  {told}" in done.stdout
    assert "step    2 of 2" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing half-written is left"
    names = {path.name for path in output.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert "old" not in names
    tokenizer = json.loads((output / "tokenizer.json").read_bytes())
    assert tokenizer["truncation"] is None
    assert tokenizer["padding"] is None
    rerank.check(output)
