"""Judge embeddings by what they find: nDCG@10 on a labelled set, and sets in BEIR's layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import GateError

BEIR_FILES = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
CUTOFF = 10
NUM_RESAMPLES = 2000
MAX_PROBLEMS = 20  # of a damaged file: more would hide the first


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """Queries, and for each the passages that answer it."""

    queries: tuple[str, ...]
    passages: tuple[str, ...]
    relevant: tuple[Mapping[int, int], ...]  # per query: passage index -> grade, 1 or more


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How much worse a candidate finds than the reference does; positive is worse."""

    mean: float
    low: float  # of the 95 % interval, by a paired bootstrap over queries
    high: float


def load(params: Mapping[str, Any], inputs: Mapping[str, Path]) -> tuple[str, RetrievalSet]:
    """The set that a stage's params name, and its name: "stdlib-docstrings", or "beir:FOLDER". Raises GateError."""
    name = str(params.get("retrieval", "stdlib-docstrings"))
    if name.startswith("beir:"):
        return name, read_beir(Path(params.get("source_base", ".")) / name.removeprefix("beir:"))
    return name, parse(json.loads(inputs["texts.json"].read_bytes())["retrieval"])


def parse(content: Mapping[str, Any]) -> RetrievalSet:
    """The "retrieval" part of texts.json. There `relevant` lists indices; all have grade 1."""
    return RetrievalSet(
        queries=tuple(content["queries"]),
        passages=tuple(content["passages"]),
        relevant=tuple(dict.fromkeys(map(int, indices), 1) for indices in content["relevant"]),
    )


def ndcg_at_10(
    queries: NDArray[np.float32], passages: NDArray[np.float32], relevant: Sequence[Mapping[int, int]]
) -> NDArray[np.float64]:
    """(Q, D), (P, D) -> (Q,) nDCG@10 by exact cosine search. Of equally near passages the first listed ranks first."""
    return ndcg_of_ranking(search(queries, passages, CUTOFF), relevant)


def ndcg_of_ranking(ranking: NDArray[np.int64], relevant: Sequence[Mapping[int, int]]) -> NDArray[np.float64]:
    """(Q, K) passages, best first -> (Q,) nDCG@10 against all relevant passages, ranked or not."""
    import ir_measures

    # The ranking itself is scored: trec_eval would break ties of the scores by passage name.
    run = [
        ir_measures.ScoredDoc(str(query), str(passage), float(-rank))
        for query, passages in enumerate(ranking)
        for rank, passage in enumerate(passages.tolist())
    ]
    labels = [
        ir_measures.Qrel(str(query), str(passage), grade)
        for query, grades in enumerate(relevant)
        for passage, grade in grades.items()
    ]
    values = np.zeros(len(relevant))
    for metric in ir_measures.iter_calc([ir_measures.nDCG @ CUTOFF], labels, run):
        values[int(metric.query_id)] = metric.value
    return values


def search(queries: NDArray[np.float32], passages: NDArray[np.float32], depth: int) -> NDArray[np.int64]:
    """(Q, D), (P, D) -> (Q, min(depth, P)) indices of the nearest passages, nearest first."""
    scores = _unit(queries) @ _unit(passages).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :depth]


def drop(reference: NDArray[np.float64], candidate: NDArray[np.float64], *, seed: int = 0) -> Drop:
    """(Q,), (Q,) per-query values -> the mean drop and its interval; seeded, hence the same at every run."""
    differences = reference - candidate
    draws = np.random.default_rng(seed).integers(0, differences.size, size=(NUM_RESAMPLES, differences.size))
    low, high = np.quantile(differences[draws].mean(axis=1), (0.025, 0.975))
    return Drop(mean=float(differences.mean()), low=float(low), high=float(high))


def beir_digest(folder: Path) -> str:
    """ "sha256:…" over the set's files: what a verdict on it depends on. Missing files are told when it is read."""
    total = hashlib.sha256()
    for name in BEIR_FILES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def read_beir(folder: Path) -> RetrievalSet:
    """Read corpus.jsonl, queries.jsonl and qrels/test.tsv. Raises GateError that lists what is wrong and where.

    Only labelled queries are kept, in the file's order; a passage is its title and text; a grade of 0 is no answer.
    """
    paths = {name: folder / name for name in BEIR_FILES}
    problems = [f"{name}: is missing" for name, path in paths.items() if not path.is_file()]
    if problems:
        raise _error(folder, problems)
    corpus = dict(_texts(paths["corpus.jsonl"], problems))
    queries = dict(_texts(paths["queries.jsonl"], problems))
    index_of = {name: index for index, name in enumerate(corpus)}
    grades: dict[str, dict[int, int]] = {}
    for place, query, passage, grade in _labels(paths["qrels/test.tsv"], problems):
        if query not in queries:
            problems.append(f"{place}: query '{query}' is not in queries.jsonl")
        elif passage not in corpus:
            problems.append(f"{place}: passage '{passage}' is not in corpus.jsonl")
        elif grade > 0:
            grades.setdefault(query, {})[index_of[passage]] = grade
    if not grades and not problems:
        problems.append("qrels/test.tsv: no query has an answer; a grade must be 1 or more")
    if problems:
        raise _error(folder, problems)
    kept = [query for query in queries if query in grades]
    return RetrievalSet(
        queries=tuple(queries[query] for query in kept),
        passages=tuple(corpus.values()),
        relevant=tuple(grades[query] for query in kept),
    )


def _texts(path: Path, problems: list[str]) -> Iterator[tuple[str, str]]:
    """(_id, "title text") of each line."""
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path.name} line {number}"
            try:
                entry = json.loads(line)
            except ValueError as error:
                problems.append(f"{place}: is not JSON: {error}")
                continue
            if not isinstance(entry, dict) or not isinstance(entry.get("_id"), str) or not entry.get("text"):
                problems.append(f'{place}: needs "_id" (a string) and "text"')
            elif entry["_id"] in seen:
                problems.append(f"{place}: _id '{entry['_id']}' is there twice")
            else:
                seen.add(entry["_id"])
                yield entry["_id"], f"{entry.get('title') or ''} {entry['text']}".strip()


def _labels(path: Path, problems: list[str]) -> Iterator[tuple[str, str, str, int]]:
    """(place, query, passage, grade) of each line under the header."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            columns = line.rstrip("\n").split("\t")
            if (number == 1 and columns[0] == "query-id") or not line.strip():
                continue
            place = f"qrels/{path.name} line {number}"
            if len(columns) != 3 or not columns[2].strip().lstrip("-").isdigit():
                problems.append(f"{place}: needs query-id, corpus-id and a whole-number score, separated by tabs")
            else:
                yield place, columns[0], columns[1], int(columns[2])


def _error(folder: Path, problems: list[str]) -> GateError:
    shown = [f"  {problem}" for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        shown.append(f"  … and {len(problems) - MAX_PROBLEMS} more")
    remedy = "  BEIR's layout: corpus.jsonl, queries.jsonl (_id, text), qrels/test.tsv (query-id, corpus-id, score)"
    return GateError("\n".join([f"retrieval set {folder.name}:", *shown, remedy]))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)
