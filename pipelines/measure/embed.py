"""Measure an embedding engine: cosine to the fp32 reference, retrieval on a labelled set, batch invariance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.datasets import retrieval
from pipelines.measure.base import LabelledSet, Measure, Runners, Score, cosine, cosines_alone_and_together, cut
from pipelines.measure.runner import Items, Outputs, rounded, unit
from pipelines.measure.speed import Loads, text_loads
from serving.tasks.base import ONLY, Recorded
from serving.tasks.embed import EmbedSpec, Encoder

# Of queries and passages, in the engine's vectors and the reference's alike. 64 tokens tell docstrings apart, and
# an fp8 graph takes a millisecond a token here; a person's own set is read further.
RETRIEVAL_MAX_TOKENS, BEIR_MAX_TOKENS = 64, 256
INVARIANCE_TEXTS, INVARIANCE_BATCH, INVARIANCE_MAX_TOKENS = 16, 64, 64


def labelled(encoder: Encoder, params: Mapping[str, Any], inputs: Mapping[str, Path]) -> LabelledSet:
    name, texts = retrieval.load(params, inputs)
    default = BEIR_MAX_TOKENS if name.startswith("beir:") else RETRIEVAL_MAX_TOKENS
    max_tokens = int(params.get("retrieval_max_tokens", default))
    queries = cut(encoder.encode(texts.queries, truncate="END", input_type="query"), max_tokens)
    passages = cut(encoder.encode(texts.passages, truncate="END", input_type="passage"), max_tokens)

    def score(runners: Runners) -> Score:
        vectors = runners[ONLY].vectors
        return Score(values=retrieval.ndcg_at_10(vectors(queries), vectors(passages), texts.relevant))

    return LabelledSet(
        section="retrieval",
        figure="ndcg_at_10",
        identity={"set": name, "max_tokens": max_tokens},
        describe=lambda record: "{set} cut at {max_tokens} tokens".format(**record),
        facts={"set": name, "max_tokens": max_tokens, "num_queries": len(queries), "num_passages": len(passages)},
        score=score,
    )


def golden(outputs: Mapping[str, Outputs], recorded: Sequence[Recorded]) -> dict[str, Any]:
    return {"cosine": cosine(unit(outputs[ONLY]), recorded[0].rows)}


def invariance(runners: Runners, items: Mapping[str, Items]) -> dict[str, Any]:
    texts = cut(items[ONLY], INVARIANCE_MAX_TOKENS)
    values, size = cosines_alone_and_together(runners[ONLY], texts, num_probes=INVARIANCE_TEXTS, batch=INVARIANCE_BATCH)
    return {"min_cosine": rounded(values.min()), "num_texts": len(values), "batch_size": size}


def loads(spec: EmbedSpec, items: Mapping[str, Items]) -> dict[str, Loads]:
    return {ONLY: text_loads(items[ONLY], spec.towers[0], spec)}


MEASURE = Measure(
    labelled=labelled,
    golden=golden,
    invariance=invariance,
    loads=loads,
    facts={
        "cosine_mean": ("cosine", "mean"),
        "cosine_min": ("cosine", "min"),
        "ndcg_at_10": ("retrieval", "ndcg_at_10"),
    },
)
