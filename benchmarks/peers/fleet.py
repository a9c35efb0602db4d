"""All that is compared, started: this server once per model, Infinity with each engine, the engine alone."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.limits import limit
from benchmarks.limits.raw_engine import RawEngine, Read
from benchmarks.load.job import Generator
from benchmarks.peers import equivalence, infinity
from benchmarks.report.results import Check, Load, Server, Table
from benchmarks.runs import suite
from benchmarks.runs.suite import Log, Measurement, Target
from benchmarks.scenarios.corpus import Corpus
from benchmarks.scenarios.scenarios import Requests
from benchmarks.servers import processes
from benchmarks.servers.built import Built
from benchmarks.servers.endpoint import Endpoint
from benchmarks.servers.processes import Running

OURS = "enginery"
# What the peer's engines are tried with before one of them is chosen for each kind of load: scenario -> concurrency.
TRIALS = {"query-20": 7, "passage-300": 1, "mixed": 32, "rerank-20": 1}
TRIAL_S = 2.0
CLOSE = 0.75  # engines that reach so much of the fastest one's figure are tried twice more


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Everything that runs."""

    embed: Built
    rerank: Built
    own: Mapping[str, Running]  # by model
    engines: Mapping[str, RawEngine]  # by model
    peers: Mapping[str, Running]  # by engine; each serves both models

    def built(self, requests: Requests) -> Built:
        """The model that a scenario is for."""
        return self.rerank if requests.scenario.task == "rerank" else self.embed

    def ours(self, built: Built) -> Target:
        running = self.own[built.name]
        return Target(name=OURS, endpoint=Endpoint(url=running.url, model=built.name), pid=running.pid)

    def peer(self, engine: str, built: Built) -> Target:
        running = self.peers[engine]
        endpoint = Endpoint(url=running.url, model=built.name, ranking="cohere")
        return Target(name=peer_name(engine), endpoint=endpoint, pid=running.pid)


@contextmanager
def start(
    embed: Built,
    rerank: Built,
    *,
    peer_models: Path,
    peer_python: Path,
    peer_engines: Sequence[str],
    cache: Path,
    logs: Path,
    log: Log,
) -> Iterator[Fleet]:
    """peer_models: the folder of both models as Infinity reads them. peer_engines: none, and no peer is started.

    cache: where this server keeps what its first start measured.
    """
    with ExitStack() as stack:
        own = {
            built.name: stack.enter_context(processes.enginery(built.folder, logs / f"{built.name}.log", cache=cache))
            for built in (embed, rerank)
        }
        engines = {b.name: stack.enter_context(RawEngine(b.folder, b.profile)) for b in (embed, rerank)}
        peers = {}
        for engine in peer_engines:
            log(f"start Infinity, {engine}")
            folders = [peer_models / embed.name, peer_models / rerank.name]
            started = infinity.serve(peer_python, folders, engine, logs / f"infinity-{engine}.log")
            peers[engine] = stack.enter_context(started)
        yield Fleet(embed=embed, rerank=rerank, own=own, engines=engines, peers=peers)


def peer_name(engine: str) -> str:
    return f"Infinity {engine}"


def compare(fleet: Fleet, of_embed: Corpus, of_rerank: Corpus) -> list[Check]:
    """Every peer's answers, and the engine's alone, against this server's. The texts: cut by each model's tokenizer."""
    embed, rerank = fleet.embed, fleet.rerank
    texts = of_embed.texts(equivalence.lengths(embed.max_tokens), seed=7)
    of_query = min(16, rerank.max_tokens // 4)
    of_passages = equivalence.lengths(rerank.max_tokens - of_query)  # special tokens are in both
    query, *passages = of_rerank.texts([of_query, *of_passages], seed=8)
    of_texts: dict[str, NDArray[np.float32]] = {}
    of_pairs: dict[str, NDArray[np.float32]] = {}
    for target in (fleet.ours(embed), *(fleet.peer(engine, embed) for engine in fleet.peers)):
        of_texts[target.name] = target.endpoint.vectors(texts)
    for target in (fleet.ours(rerank), *(fleet.peer(engine, rerank) for engine in fleet.peers)):
        of_pairs[target.name] = equivalence.logits(target.endpoint, query, passages)
    of_texts[limit.NAME] = fleet.engines[embed.name].read(Read(texts=tuple(texts)))
    of_pairs[limit.NAME] = fleet.engines[rerank.name].read(Read(texts=tuple(passages), query=query))[:, 0]
    return equivalence.checks(of_texts, of_pairs, OURS)


def try_peers(
    fleet: Fleet, all_requests: Sequence[Requests], generator: Generator, log: Log
) -> tuple[dict[str, str], list[Table]]:
    """Kind of load -> the fastest of the peer's engines, and the figures by which it was chosen."""
    chosen: dict[str, str] = {}
    columns, by_engine = [""], {engine: [peer_name(engine)] for engine in fleet.peers}
    for requests in all_requests:
        name = requests.scenario.name
        if name not in TRIALS or not fleet.peers:
            continue
        load = Load(concurrency=TRIALS[name])
        columns.append(f"{name}, {load.words}")
        trials = {
            engine: Measurement(
                target=fleet.peer(engine, fleet.built(requests)),
                requests=requests,
                load=load,
                seconds=TRIAL_S,
                num_requests=suite.fixed(requests),
            )
            for engine in fleet.peers
        }
        rates = {engine: [_rate(generator, trial, warm=True)] for engine, trial in trials.items()}
        fastest = max(rate for (rate,) in rates.values())
        close = [engine for engine, (rate,) in rates.items() if rate >= CLOSE * fastest]
        for _ in range(2 if len(close) > 1 else 0):
            for engine in close:
                rates[engine].append(_rate(generator, trials[engine]))
        medians = {engine: statistics.median(its_rates) for engine, its_rates in rates.items()}
        for engine, rate in medians.items():
            by_engine[engine].append(f"{rate:.1f} items/s")
            log(f"trial: {peer_name(engine)}, {name}, {load.words}: {rate:.1f} items/s")
        chosen[requests.scenario.kind] = max(medians, key=medians.__getitem__)
    note = (
        "The fastest one for each kind of load goes through all rounds. torch-bf16 is Infinity made to run in bf16 "
        "without its own attention kernels (--dtype bfloat16 --no-bettertransformer); by itself it runs in fp32."
    )
    rows = tuple(tuple(row) for row in by_engine.values())
    title = "Infinity's engines, tried"
    return chosen, [Table(title=title, columns=tuple(columns), rows=rows, note=note)] if chosen else []


def _rate(generator: Generator, trial: Measurement, *, warm: bool = False) -> float:
    """Items per second of one round."""
    if warm:
        suite.measure(generator, trial, 1)
    return suite.measure(generator, trial, 0).figures.items_per_s


def described(fleet: Fleet, chosen: Mapping[str, str], version: str) -> tuple[Server, ...]:
    """What the report says of each. version: of the peer."""
    embed = fleet.embed
    words = f"{embed.profile} ({embed.backend}, {embed.precision}), chosen by itself; a process for each model"
    servers = [Server(name=OURS, words=words, role="ours")]
    for engine in fleet.peers:
        kinds = ", ".join(kind for kind, name in chosen.items() if name == engine)
        if kinds:
            flags = shlex.join(infinity.ENGINES[engine])
            words = f"infinity_emb {version} v2 {flags}; measured for: {kinds}"
            servers.append(Server(name=peer_name(engine), words=words, role="peer"))
    words = (
        "the same profile in a process of its own, called in a loop with the best batch shape: no server can pass it"
    )
    return (*servers, Server(name=limit.NAME, words=words, role="limit"))
