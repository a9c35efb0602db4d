"""A process's memory, and the CPU time of its threads by name, from /proc.

psutil (7.2) has neither the peak of the memory nor the names of threads.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes."""

    resident: int
    peak: int  # the most that was ever resident
    anonymous: int  # of resident: not backed by a file, so of this process alone


def memory(pid: int, proc: Path = PROC) -> Memory:
    """Raises OSError when the process has gone."""
    fields = {}
    for line in (proc / str(pid) / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM", "RssAnon"):
            fields[name] = int(value.split()[0]) * 1024
    if "VmRSS" not in fields:  # a zombie has none
        raise ProcessLookupError(f"process {pid} has ended")
    return Memory(resident=fields["VmRSS"], peak=fields["VmHWM"], anonymous=fields["RssAnon"])


def threads(pid: int, proc: Path = PROC) -> dict[int, tuple[str, float]]:
    """Thread id -> name and CPU seconds. Raises OSError when the process has gone."""
    times = {}
    for folder in (proc / str(pid) / "task").iterdir():
        try:
            times[int(folder.name)] = _times((folder / "stat").read_text())
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return times


def shares(
    pid: int, before: Mapping[int, tuple[str, float]], after: Mapping[int, tuple[str, float]], wall_s: float
) -> dict[str, float]:
    """Name -> share of one core between two readings, the largest first. The first thread is named `main`.

    Numbers at the end of a name go: pools of threads count together.
    """
    spent: defaultdict[str, float] = defaultdict(float)
    for thread, (name, seconds) in after.items():
        label = "main" if thread == pid else name.rstrip("0123456789-_:") or name
        spent[label] += seconds - before.get(thread, ("", 0.0))[1]
    ordered = sorted(spent.items(), key=lambda entry: -entry[1])
    return {name: seconds / wall_s for name, seconds in ordered if seconds > 0} if wall_s > 0 else {}


def _times(stat: str) -> tuple[str, float]:
    """Name and CPU seconds. The name stands in brackets and may hold anything, brackets too."""
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    return name, (int(fields[11]) + int(fields[12])) / _TICKS
