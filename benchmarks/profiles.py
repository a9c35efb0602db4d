"""Measure the CPU profiles of a built model side by side: each in its own process, in turn, the same inputs for all.

    python -m benchmarks.profiles [dist/MODEL] [--rounds 7] [--json FILE]

Prints medians and ratios to the generic ONNX profile. Machines are shared and noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing as mp
import platform
import statistics
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.watch import machine
from serving import backends
from serving.backends.base import LoadOptions
from serving.cache.fetch import fetch
from serving.cache.places import Places
from serving.choice import hardware, select
from serving.contract import manifest
from serving.tasks.embed import EmbedSpec

SHAPES = {"query 1x20": (1, 20), "batch 32x128": (32, 128), "passages 16x300": (16, 300)}
ENGINES = ("engine.blob", "engine.onnx")


def serve_calls(pipe: Connection, root: Path, name: str, num_threads: int) -> None:
    """In its own process: load the profile, then time one call for each shape that is asked for."""
    profile = next(p for p in manifest.read(root / "etc/default/model_manifest.yaml").profiles if p.name == name)
    files = fetch(profile, Places(root=root))
    spec = EmbedSpec.load(files["task.json"])
    options = LoadOptions(
        precision=profile.precision, num_threads=num_threads, cpu_isa=profile.tags.get("cpu_isa") or None
    )
    backend = backends.load(profile.backend, next(files[n] for n in ENGINES if n in files), options)
    pipe.send(backend.realized_precision())
    rng = np.random.default_rng(0)
    while (shape := pipe.recv()) is not None:
        ids = rng.integers(1000, 20000, shape)
        inputs = {n: np.zeros(shape, np.int64) for n in spec.input_names}
        inputs |= {"input_ids": ids, "attention_mask": np.ones(shape, np.int64)}
        started = time.perf_counter()
        backend.infer(inputs)
        pipe.send(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("dist/all-minilm-l6-v2"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    root = arguments.model / "rootfs" / "opt" / "nim"
    here = hardware.detect(cpu_only=True)
    decisions = select.decide(manifest.read(root / "etc/default/model_manifest.yaml").profiles, here)
    profiles = [profile for profile in select.rank(decisions) if profile.backend in {"openvino", "onnxruntime"}]
    context = mp.get_context("spawn")
    pipes: dict[str, Any] = {}
    processes = []
    for profile in profiles:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve_calls, args=(theirs, root, profile.name, here.num_cpus), daemon=True)
        process.start()
        processes.append(process)
        pipes[profile.name] = ours
    realized = {name: pipe.recv() for name, pipe in pipes.items()}
    times = time_in_turn(pipes, arguments.rounds)
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join(10)
    report(arguments, here.num_cpus, times, realized, profiles[-1].name if profiles else "")


def time_in_turn(pipes: Mapping[str, Any], num_rounds: int) -> dict[str, dict[str, list[float]]]:
    """Profile -> shape -> seconds of each call, after one round that warms up."""
    times: dict[str, dict[str, list[float]]] = {name: {shape: [] for shape in SHAPES} for name in pipes}
    for (shape_name, shape), number in itertools.product(SHAPES.items(), range(num_rounds + 1)):
        for name, pipe in pipes.items():
            for _ in range(20 if shape[0] == 1 else 1):
                pipe.send(shape)
                taken = pipe.recv()
                if number:
                    times[name][shape_name].append(taken)
    return times


def report(
    arguments: argparse.Namespace,
    num_cpus: int,
    times: dict[str, dict[str, list[float]]],
    realized: dict[str, Any],
    generic: str,
) -> None:
    generic = next((name for name in times if "cpu-x86-64" in name), generic)
    median = {name: {s: statistics.median(v) for s, v in by.items()} for name, by in times.items()}
    for shape_name, shape in SHAPES.items():
        print(f"\n{shape_name}: median of {len(next(iter(times.values()))[shape_name])} calls, {num_cpus} threads")
        for name, by in median.items():
            ratio = median[generic][shape_name] / by[shape_name]
            print(f"  {by[shape_name] * 1e3:9.2f} ms  {shape[0] / by[shape_name]:8.1f} items/s  {ratio:5.2f} x  {name}")
    if arguments.json:
        results = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"python -m benchmarks.profiles --rounds {arguments.rounds}",
            "machine": {"cpu": machine.describe()["CPU"], "threads": num_cpus, "python": platform.python_version()},
            "generic": generic,
            "median_s": median,
            "realized_precision": realized,
        }
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
