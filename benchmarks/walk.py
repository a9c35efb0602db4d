"""What the factory's walk costs over the bare tool calls: export, quantize and compile, by the walk and in one script.

python -m benchmarks.walk [--matrix sku_matrix.yaml] [--rounds 3]

The script is what a person would write: the same calls with the same settings, one after another in one process that
has imported its libraries once (OpenVINO for a second instruction set needs another). It hashes and keeps nothing. The
walk runs as `enginery build` does, in an empty store: each step in a process of its own, inputs verified, outputs
stored by digest, one step at a time and, as its default is, two. Rounds take turns; ratios are of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines import stage
from pipelines.build.executor import run
from pipelines.build.process import STAGE_ENVIRONMENT, run_stage
from pipelines.build.project import Project
from pipelines.onnx_graph.external_data import SUFFIX
from pipelines.plan.graph import Graph

STAGES = ("texts", "export", "quantize", "compile")


def engine_steps(matrix: Path, store: Path) -> tuple[Project, Graph]:
    """The steps that make engines; what measures and judges them is left out."""
    project = Project.open(matrix, store=store)
    graph = project.graph()
    return project, graph.closure(name for name, step in graph.steps.items() if step.stage in STAGES)


def by_walk(matrix: Path, jobs: int) -> dict[str, float]:
    """Seconds, whole and of each stage."""
    with tempfile.TemporaryDirectory() as scratch:
        project, graph = engine_steps(matrix, Path(scratch) / "store")
        start = time.monotonic()
        results = run(graph, project.store, jobs=jobs)
        whole_s = time.monotonic() - start
    failures = [f"{result.step.id}: {result.error}" for result in results.values() if result.record is None]
    if failures:
        raise SystemExit("\n".join(failures))
    seconds: defaultdict[str, float] = defaultdict(float)
    for result in results.values():
        assert result.record is not None
        seconds[result.step.stage] += result.record.duration_s
    return {"whole": whole_s, **seconds}


def bare(matrix: Path, folder: Path) -> dict[str, float]:
    """The same calls in this process, but those for a second instruction set: oneDNN reads one in its life."""
    _, graph = engine_steps(matrix, folder / "store")
    sets = Counter(step.params["cpu_isa"] for step in graph.steps.values() if "cpu_isa" in step.params)
    most_common = max(sets, key=sets.__getitem__, default=None)
    outputs: dict[str, Mapping[str, Path]] = {}  # by step
    seconds: defaultdict[str, float] = defaultdict(float)
    for step in graph.steps.values():
        inputs = {}
        for name, ref in step.inputs.items():
            for ending in ("", SUFFIX):  # an ONNX file may have its weights beside it
                path = outputs[ref.step].get(ref.output + ending)
                if path is not None:
                    inputs[name + ending] = path
        output_dir = folder / step.id.replace("/", "__")
        output_dir.mkdir(parents=True)
        start = time.monotonic()
        if step.params.get("cpu_isa") not in (None, most_common):
            outputs[step.id] = run_stage(step, inputs, output_dir)[0]
        else:
            request = stage.StageRequest(
                stage=step.stage, subject=step.subject, params=step.params, inputs=inputs, output_dir=output_dir
            )
            outputs[step.id] = stage.run(request).outputs
        seconds[step.stage] += time.monotonic() - start
    return {"whole": sum(seconds.values()), **seconds}


def by_script(matrix: Path) -> dict[str, float]:
    """Seconds, the start of the process and its imports included."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "seconds.json"
        command = [sys.executable, "-m", "benchmarks.walk", "--matrix", str(matrix), "--bare", str(report)]
        start = time.monotonic()
        script = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **STAGE_ENVIRONMENT})
        whole_s = time.monotonic() - start
        if script.returncode:
            raise SystemExit(script.stderr[-3000:])
        seconds: dict[str, float] = json.loads(report.read_text())
    return {**seconds, "whole": whole_s}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", type=Path, default=Path("sku_matrix.yaml"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        options.bare.write_text(json.dumps(bare(options.matrix, options.bare.parent / "outputs")))
        return 0
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "one script": lambda: by_script(options.matrix),
        "the walk, a step at a time": lambda: by_walk(options.matrix, 1),
        "the walk, two steps at a time": lambda: by_walk(options.matrix, 2),
    }
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(options.rounds):
        rounds.append({})
        for name, way in ways.items():
            rounds[-1][name] = way()
            parts = ", ".join(f"{part} {s:.1f} s" for part, s in rounds[-1][name].items() if part != "whole")
            print(f"round {number + 1}, {name}: {rounds[-1][name]['whole']:.1f} s ({parts})", flush=True)
    for name in list(ways)[1:]:
        ratios = [seconds[name]["whole"] / seconds["one script"]["whole"] for seconds in rounds]
        print(f"{name}: {statistics.median(ratios):.2f} x the script (median of {len(ratios)} rounds)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
