"""Turn a locked requirements file into a folder of installed, stripped and compiled Python packages."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import ImageError
from pipelines.store.files import file_digest

# What an installer writes for itself: it names this machine's folders, or files that were stripped.
_INSTALLER_FILES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def fetch(requirements: Path, wheelhouse: Path) -> Path:
    """The folder of a requirements file's wheels; unless it is there, pip downloads it by this machine's own settings.

    Only wheels, and only those named: nothing is built and nothing is resolved. pip checks their digests.
    """
    folder = wheelhouse / file_digest(requirements).removeprefix("sha256:")[:16]
    if folder.is_dir():
        return folder
    wheelhouse.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheelhouse) as scratch:
        part = Path(scratch) / "wheels"
        _pip("download", "--only-binary=:all:", "--no-deps", "--dest", part, "--requirement", requirements)
        part.replace(folder)
    return folder


def install(requirements: Path, wheels: Path, target: Path, *, prefix: str) -> None:
    """Install wheels into the new folder `target`, which an image will have at `prefix`."""
    _pip(
        "install", "--no-index", "--no-deps", "--no-compile", "--ignore-installed", "--find-links", wheels,
        "--target", target, "--requirement", requirements,
    )  # fmt: skip
    shutil.rmtree(target / "bin", ignore_errors=True)  # commands whose first line names this machine's Python
    for record in target.glob("*.dist-info/*"):
        if record.name in _INSTALLER_FILES:
            record.unlink()
    strip(target, strip_list(requirements.with_name("strip.txt")))
    compile_all(target, prefix=prefix)


def strip_list(path: Path) -> tuple[str, ...]:
    """The patterns of a strip.txt: one per line, `#` starts a comment."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return tuple(line for line in lines if line)


def strip(folder: Path, patterns: Sequence[str]) -> None:
    """Remove what the patterns name, and folders that this leaves empty; `*` also matches `/`.

    A pattern that matches nothing is stale, hence an error.
    """
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    unused = []
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            unused.append(pattern)
        for name in matched:
            path = names[name]
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            _remove_empty(path.parent, folder)
    if unused:
        raise ImageError(
            f"strip.txt names what is not in these wheels: {', '.join(unused)}; the wheels changed, look at them again"
        )


def _remove_empty(path: Path, top: Path) -> None:
    while path != top and path.is_dir() and not any(path.iterdir()):
        path.rmdir()
        path = path.parent


def compile_all(folder: Path, *, prefix: str) -> None:
    """Write each module's bytecode, marked as needing no check: a read-only image cannot write its own.

    The bytes depend on the sources and this Python alone: the folder's own path is replaced and hashing is fixed.
    """
    _run(
        [
            sys.executable, "-S", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash",
            "-s", folder.resolve(), "-p", prefix, folder.resolve(),
        ],
        "compiling Python modules failed",
    )  # fmt: skip


def _pip(*arguments: str | Path) -> None:
    _run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        "pip could not provide the image's packages; its index and certificates are this machine's own settings",
    )


def _run(command: Sequence[str | Path], failure: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{failure}:\n" + "\n".join(f"    {line}" for line in done.stderr.splitlines()[-12:]))
