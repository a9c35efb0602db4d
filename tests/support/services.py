"""Real services for tests: Postgres and Redis on free ports, in a temporary folder, stopped at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, ready: Callable[[], bool], limit_s: float, log: Path | None = None) -> None:
    """Wait for something to become true; fail with its name, and the end of a log."""
    deadline = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > deadline:
            end = log.read_text(errors="replace")[-6000:] if log is not None and log.exists() else ""
            raise AssertionError(f"not within {limit_s:.0f} s: {what}\n{end}")
        time.sleep(0.2)


@contextmanager
def started(
    command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None, user: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, ended with all its children."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
            user=user,
        )
    try:
        yield process
    finally:
        kill(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        kill(process, signal.SIGKILL)
        process.wait(timeout=10)


def kill(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Signal a process and all of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis server; yields its address."""
    port, log = free_port(), folder / "redis.log"
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with started(command, log):
        until("redis answers", lambda: accepts(port), 20, log)
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgres() -> Iterator[int]:
    """A Postgres server with the user and database `dagster`; yields its port. Never as root: it refuses that."""
    (binaries, *_) = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True, timeout=10).strip())
    try:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        data, port, log = folder / "data", free_port(), folder / "log"
        initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "dagster", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, user=user, timeout=60, cwd=folder)
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"]
        with started([*command, "-F"], log, user=user):
            until("postgres answers", lambda: accepts(port), 30, log)
            create = [str(binaries / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "dagster", "dagster"]
            until("a database", lambda: subprocess.run(create, capture_output=True, timeout=20).returncode == 0, 30)
            yield port
    finally:
        shutil.rmtree(folder, ignore_errors=True)
