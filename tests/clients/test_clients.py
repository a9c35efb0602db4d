"""Public clients of NIM, unmodified, against a running server: what they get is what plain HTTP gives."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.served_models import PYTHON, Served, environ

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(900)]
Client = Callable[..., Any]

TEXTS = ["open a file and read it", "two eggs and a cup of flour", "the absolute value of a number", "x"]
QUERY = "how is a file read?"
PASSAGES = [f"{word} {n} of the file: return the {word}" for n in range(6) for word in ("string", "object", "number")]


def vectors(served: Served, texts: list[str], input_type: str) -> np.ndarray[Any, Any]:
    answer = served.post("/v1/embeddings", input=texts, input_type=input_type)
    return np.array([item["embedding"] for item in answer["data"]])


def near(found: Any, expected: Any) -> bool:
    return np.allclose(np.array(found), np.array(expected), atol=1e-5)


def expected_order(served: Served) -> list[list[Any]]:
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in PASSAGES]}
    return [[PASSAGES[entry["index"]], entry["logit"]] for entry in served.post("/v1/ranking", **body)["rankings"]]


def check_order(found: list[list[Any]], expected: list[list[Any]]) -> None:
    """By falling score, each passage with the score it has alone; near ties may change places."""
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    theirs, ours = dict(map(tuple, found)), dict(map(tuple, expected))
    assert theirs.keys() == ours.keys()
    assert max(abs(theirs[text] - ours[text]) for text in ours) <= 1e-3


def test_the_openai_sdk_gets_the_vectors_of_plain_http(embedder: Served, client: Client) -> None:
    got = client("openai_sdk.py", url=embedder.url, model=embedder.model, texts=TEXTS)
    passages, query = vectors(embedder, TEXTS, "passage"), vectors(embedder, TEXTS[:1], "query")
    assert got["models"] == ["tiny"]
    for form in ("base64", "float", "async"):
        assert near(got[form], passages), form
    assert near(got["query"], query)
    assert near(got["extra_body"], query)
    assert not near(query, passages[:1]), "the prefixes make no difference, so nothing above is shown"
    assert np.array(got["short"]).shape == (1, 32)
    assert got["usage"]["prompt_tokens"] == got["usage"]["total_tokens"] > len(TEXTS)
    assert got["too_long"][0] == 400
    assert "exceeds maximum allowed token size 64" in got["too_long"][1]
    assert got["unknown"][0] == 404
    assert "another-model" in got["unknown"][1]


def test_langchain_embeds_discovers_the_model_and_sees_its_limits(embedder: Served, client: Client) -> None:
    got = client("langchain_nvidia.py", task="embed", url=embedder.url, model=embedder.model, texts=TEXTS)
    assert got["discovered"] == "tiny"
    assert near(got["documents"], vectors(embedder, TEXTS, "passage"))
    assert near(got["query"], vectors(embedder, TEXTS[:1], "query")[0])
    assert "exceeds maximum allowed" in got["too_long"]
    assert "400" in got["too_long"]
    assert (got["start"], got["end"], got["short"], got["huge"]) == (64, 64, 32, 64)
    assert "400" in got["negative"]


def test_langchain_reranks_alike_in_every_batch_size(reranker: Served, client: Client) -> None:
    """The assertion that langchain's own test_rerank_batching has commented out, because NIM fails it."""
    got = client(
        "langchain_nvidia.py", task="rerank", url=reranker.url, model=reranker.model, query=QUERY, passages=PASSAGES
    )
    expected = expected_order(reranker)
    assert got["models"] == ["tiny-rerank"]
    check_order(got["whole"], expected)
    assert [text for text, _ in got["top"]] == [text for text, _ in got["whole"][:2]]
    assert set(got["batched"]) == {"1", "2", "3", "5", "8", "17"}
    for found in got["batched"].values():
        check_order(found, expected)
    assert got["truncated"] == 1
    assert "400" in got["too_long"]
    assert "exceeds maximum allowed" in got["too_long"]


@pytest.mark.parametrize("script", ["llama_index_nvidia.py", "haystack_nvidia.py"])
def test_llama_index_and_haystack_embed(embedder: Served, client: Client, script: str) -> None:
    got = client(script, task="embed", url=embedder.url, model=embedder.model, texts=TEXTS)
    assert near(got["documents"], vectors(embedder, TEXTS, "passage"))
    # llama-index 0.6.0 sends a query as a passage, but for its asynchronous call.
    asked = "passage" if script.startswith("llama") else "query"
    assert near(got["query"], vectors(embedder, TEXTS[:1], asked)[0])


@pytest.mark.parametrize("script", ["llama_index_nvidia.py", "haystack_nvidia.py"])
def test_llama_index_and_haystack_rerank(reranker: Served, client: Client, script: str) -> None:
    got = client(script, task="rerank", url=reranker.url, model=reranker.model, query=QUERY, passages=PASSAGES)
    check_order(got["whole"], expected_order(reranker))


def cached_tokenizer(served: Served, home: Path) -> str:
    """A local tokenizer as aiperf takes it without a network: by a name, from the hub's cache."""
    folder = home / ".cache" / "huggingface" / "hub" / "models--local--tokenizer"
    shutil.copytree(served.tokenizer, folder / "snapshots" / "0", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    return "local/tokenizer"


@pytest.mark.parametrize(
    ("kind", "lines", "extra"),
    [
        ("nim_embeddings", [{"texts": [text]} for text in TEXTS], ["input_type:query", "truncate:END"]),
        (
            "nim_rankings",
            [
                {
                    "texts": [
                        {"name": "query", "contents": [QUERY]},
                        {"name": "passages", "contents": PASSAGES[n : n + 4]},
                    ]
                }
                for n in range(4)
            ],
            ["truncate:END"],
        ),
    ],
)
def test_aiperf_measures_without_an_error(
    embedder: Served,
    reranker: Served,
    client: Client,
    tmp_path: Path,
    kind: str,
    lines: list[Any],
    extra: list[str],
) -> None:
    served = embedder if kind == "nim_embeddings" else reranker
    (tmp_path / "input.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        *(PYTHON.parent / "aiperf", "profile", "--model", served.model, "--endpoint-type", kind, "--url", served.url),
        *("--input-file", tmp_path / "input.jsonl", "--custom-dataset-type", "single_turn"),
        *(part for entry in extra for part in ("--extra-inputs", entry)),
        *("--request-count", "20", "--concurrency", "5", "--tokenizer", cached_tokenizer(served, tmp_path)),
        *("--ui", "none"),
        *("--output-artifact-dir", tmp_path / "out"),
    ]
    done = subprocess.run(
        list(map(str, command)),
        env=environ(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (report,) = (tmp_path / "out").rglob("profile_export_aiperf.json")
    figures = json.loads(report.read_text())
    assert figures["request_count"]["avg"] == 20
    assert not figures.get("error_summary")


def test_curl_as_the_documents_of_nim_print_it_works(embedder: Served, reranker: Served) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    for served, route, body in (
        (embedder, "/v1/embeddings", {"input": ["Hello world"], "model": "tiny", "input_type": "query"}),
        (
            reranker,
            "/v1/ranking",
            {"model": "tiny-rerank", "query": {"text": QUERY}, "passages": [{"text": PASSAGES[0]}], "truncate": "END"},
        ),
    ):
        command = [curl, "-sS", "-X", "POST", f"{served.url}{route}", "-H", "accept: application/json"]
        command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert {"data", "rankings"} & json.loads(done.stdout).keys(), done.stdout


def test_the_rerank_routes_of_cohere_jina_and_tei_give_the_same_order(reranker: Served) -> None:
    order = [
        entry["index"]
        for entry in reranker.post("/v1/ranking", query={"text": QUERY}, passages=[{"text": t} for t in PASSAGES])[
            "rankings"
        ]
    ]
    jina = reranker.post("/v1/rerank", query=QUERY, documents=PASSAGES, top_n=5, return_documents=True)
    assert [entry["index"] for entry in jina["results"]] == order[:5]
    assert jina["results"][0]["document"]["text"] == PASSAGES[order[0]]
    assert all(0 <= entry["relevance_score"] <= 1 for entry in jina["results"])
    tei = httpx.post(f"{reranker.url}/rerank", json={"query": QUERY, "texts": PASSAGES, "raw_scores": True}).json()
    assert [entry["index"] for entry in tei] == order
