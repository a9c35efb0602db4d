"""Claims on steps, where several builders share a store: one builds a step, the others wait for its record.

A claim only keeps two builders from doing the same work. What the store holds is decided by `Store.write_record`: the
first complete record of a key stands. So nobody waits for a claim whose holder is gone or shows no life.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIFE_S = 2.0  # a holder touches its claim this often
LOST_AFTER_S = 30.0  # a holder that has not touched its claim for this long is lost: suspended, or its host is gone


@contextmanager
def claimed(path: Path, *, poll_s: float = 0.2) -> Iterator[None]:
    """Hold the claim at `path`. Waits while its holder lives; goes ahead beside a holder that is lost.

    The kernel frees the claim of a process that was killed. One that was suspended, or whose host was cut off, still
    holds it, but no longer touches the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.time() - path.stat().st_mtime > LOST_AFTER_S:
                    break
                time.sleep(poll_s)
        os.utime(path)
        ended = threading.Event()
        alive = threading.Thread(target=_touch, args=(path, ended), daemon=True, name="claim")
        alive.start()
        try:
            yield
        finally:
            ended.set()
            alive.join()


def held(path: Path) -> bool:
    """Whether a builder that lives holds the claim at `path`."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return time.time() - path.stat().st_mtime <= LOST_AFTER_S


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(LIFE_S):
        os.utime(path)


@contextmanager
def quiet(*, exclusive: bool) -> Iterator[None]:
    """Hold this host: alone, to measure time; or together with others that do not measure."""
    path = Path(tempfile.gettempdir()) / f"enginery-{os.getuid()}.quiet"
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
