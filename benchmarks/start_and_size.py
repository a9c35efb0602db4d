"""How long this server takes to be ready, phase by phase, how much memory it holds, and what its images weigh.

python -m benchmarks.start_and_size dist/MODEL [--starts 5]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import console
from benchmarks.report.results import Table
from benchmarks.servers import processes
from benchmarks.watch import procfs
from benchmarks.watch.memory import MIB

PHASE = re.compile(r"Phase (\S+) took ([\d.]+) s")
REST_S = 2.0  # after it is ready, until memory at rest is read


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start."""

    live_s: float  # until the port answers
    ready_s: float  # until requests are answered
    phases: dict[str, float]  # as the server logs them
    memory: procfs.Memory  # at rest


def measure(model_dir: Path, scratch: Path, cache: Path) -> Start:
    """Start the server once and stop it. Raises EngineryError when it does not get ready.

    cache: where the server keeps what its first start on a machine measured.
    """
    log = scratch / "start.log"
    port = processes.free_port()
    environ = processes.serving_environment(model_dir, port) | {"NIM_CACHE_PATH": str(cache.absolute())}
    start = time.monotonic()
    with processes.started(processes.serving_command(), port, "/v1/health/live", log, environ) as running:
        live_s = time.monotonic() - start
        processes.wait(running, "/v1/health/ready")
        ready_s = time.monotonic() - start
        time.sleep(REST_S)
        memory = procfs.memory(running.pid)
    return Start(live_s=live_s, ready_s=ready_s, phases=phases(log.read_text("utf-8", "replace")), memory=memory)


def phases(log: str) -> dict[str, float]:
    """Phase -> seconds, in the order of the log; of one that ran for several profiles, all together."""
    sums: dict[str, float] = {}
    for name, seconds in PHASE.findall(log):
        sums[name] = sums.get(name, 0.0) + float(seconds)
    return sums


def start_table(starts: Sequence[Start], first: Start | None = None) -> Table:
    """Medians. first: the start with an empty cache, where that is another."""

    def middle(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.2f} s"

    names = list(dict.fromkeys(name for start in starts for name in start.phases))
    rows = [("the port answers (Python, uvicorn)", middle([start.live_s for start in starts]))]
    rows += [(f"phase {name}", middle([start.phases.get(name, 0.0) for start in starts])) for name in names]
    other = [start.ready_s - start.live_s - sum(start.phases.values()) for start in starts]
    rows += [
        ("the rest (imports beside the port)", middle([max(0.0, seconds) for seconds in other])),
        ("ready, from the start of its process", middle([start.ready_s for start in starts])),
        ("resident at rest", f"{statistics.median(start.memory.resident for start in starts) / MIB:.0f} MiB"),
        ("the most that was resident", f"{statistics.median(start.memory.peak for start in starts) / MIB:.0f} MiB"),
        ("of it not backed by files, at rest", f"{_anonymous(starts):.0f} MiB"),
    ]
    if first is not None:
        rows.append(("ready at the first start on a machine (empty cache)", f"{first.ready_s:.2f} s"))
    return Table(
        title="From the start of the process until it is ready",
        columns=("", f"median of {len(starts)}"),
        rows=tuple(rows),
        note="Phases as the server logs them. The port answers probes while the engine is still loading.",
    )


def _anonymous(starts: Sequence[Start]) -> float:
    return float(statistics.median(start.memory.anonymous for start in starts)) / MIB


def size_tables(model_dir: Path, model: str) -> list[Table]:
    """The images of a model by layer: from images.json of its build, else from the Docker engine, else none."""
    listed = model_dir / "images.json"
    if listed.is_file():
        images = json.loads(listed.read_text())
        by_image = {
            image["reference"]: [(layer["what"], layer["size_bytes"]) for layer in image["layers"]] for image in images
        }
    else:
        by_image = {reference: layers for reference in _references(model) if (layers := _history(reference))}
    return [_size_table(reference, layers) for reference, layers in by_image.items()]


def _size_table(reference: str, layers: Sequence[tuple[str, int]]) -> Table:
    rows = tuple((what, f"{size / MIB:.1f} MiB") for what, size in layers if size)
    total = sum(size for _, size in layers)
    return Table(
        title=f"Image {reference}", columns=("layer", "size"), rows=(*rows, ("together", f"{total / MIB:.0f} MiB"))
    )


def _references(model: str) -> list[str]:
    if shutil.which("docker") is None:
        return []
    answer = _docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"enginery/{model}")
    return sorted(line for line in answer.splitlines() if "<none>" not in line)


def _history(reference: str) -> list[tuple[str, int]]:
    answer = _docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", reference)
    layers = [line.split("\t", 1) for line in answer.splitlines() if "\t" in line]
    return [(what.removeprefix("enginery: "), int(size)) for size, what in reversed(layers) if size.isdigit()]


def _docker(*arguments: str) -> str:
    """Docker's output; nothing where no engine answers."""
    try:
        answer = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("dist/all-minilm-l6-v2"))
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path(".bench/start"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.scratch, ignore_errors=True)
    cache = arguments.scratch / "cache"
    first, *starts = (measure(arguments.model, arguments.scratch, cache) for _ in range(1 + arguments.starts))
    console.show_findings([start_table(starts, first), *size_tables(arguments.model, arguments.model.name)])


if __name__ == "__main__":
    main()
