"""Turn a profile's files into bytes that are known to be the right ones: where they lie, and the check on them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from blake3 import blake3

from serving.errors import CacheError
from serving.profile import Profile, ProfileFile


def fetch(profile: Profile, *, root: Path, override: str | None = None) -> dict[str, bytes]:
    """The profile's files by their workspace name, each checked against the manifest's size and checksum.

    The check is made on the very bytes that are returned, and before anything parses them: an engine file is executable
    code. root: where the image keeps embedded files; override: the URI that relative references start from instead
    (NIM_REPOSITORY_OVERRIDE). Raises CacheError that lists every bad file.
    """
    contents: dict[str, bytes] = {}
    problems: list[str] = []
    for file in profile.files:
        uri, within = locate(file, root=root, override=override)
        try:
            contents[file.path] = _checked(file, _reader(uri)(uri, within, file.size_bytes))
        except _Bad as error:
            problems.append(f"{file.path} ({uri}): {error}")
    if problems:
        remedy = "these files are not what the manifest promises: pull the image again, or copy the mirror again"
        raise CacheError(f"profile {profile.id} ({profile.name})", [*problems, remedy])
    return contents


def locate(file: ProfileFile, *, root: Path, override: str | None = None) -> tuple[str, str | None]:
    """A file's absolute URI, and the URI it must stay within; None where the manifest itself gave an absolute one."""
    if "://" in file.uri:
        return file.uri, None
    base = (override or root.absolute().as_uri()).rstrip("/")
    return f"{base}/{quote(file.uri)}", base


class _Bad(Exception):
    """Why one file cannot be used."""


def _checked(file: ProfileFile, data: bytes) -> bytes:
    if file.size_bytes >= 0 and len(data) != file.size_bytes:
        raise _Bad(f"has {len(data)} bytes where the manifest says {file.size_bytes}")
    actual = "blake3:" + blake3(data, max_threads=blake3.AUTO).hexdigest()
    if actual != file.checksum:
        raise _Bad(f"hashes to {actual} where the manifest says {file.checksum}")
    return data


_Reader = Callable[[str, str | None, int], bytes]


def _reader(uri: str) -> _Reader:
    scheme = uri.partition("://")[0]
    if scheme not in READERS:
        raise _Bad(f"{scheme}:// is not a source that this server reads ({', '.join(f'{s}://' for s in READERS)})")
    return READERS[scheme]


def _read_file(uri: str, within: str | None, size_bytes: int) -> bytes:
    """Read a regular file; size_bytes < 0 means that the manifest does not say how long it is."""
    path = _path(uri)
    try:
        real = path.resolve(strict=True)
        if within is not None and not real.is_relative_to(_path(within).resolve()):
            raise _Bad(f"is a link that leads out of {_path(within)}, to {real}")
        # NONBLOCK: opening a named pipe must not hang the boot. NOFOLLOW: what was resolved is what is opened.
        descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise _Bad("is not a regular file")
            if 0 <= size_bytes != info.st_size:
                raise _Bad(f"has {info.st_size} bytes where the manifest says {size_bytes}")
            with open(descriptor, "rb", buffering=0, closefd=False) as stream:
                return stream.readall()
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise _Bad("is missing") from None
    except PermissionError:
        raise _Bad(f"may not be read by user {os.geteuid()}: {_owner(path)}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise _Bad(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _path(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise _Bad(
            f"names the host {parts.netloc!r}; a file:// URI has three slashes: file:///{parts.netloc}{parts.path}"
        )
    text = unquote(parts.path)
    if "\0" in text or ".." in text.split("/") or parts.query or parts.fragment:
        raise _Bad("holds '..', NUL, '?' or '#'; write the plain path, percent-encoded")
    return Path(text)


def _owner(path: Path) -> str:
    try:
        info = path.stat()
    except OSError:
        return f"a folder above it is closed; run as another user or open {path.parent} to all"
    return f"owner {info.st_uid}:{info.st_gid}, mode {stat.S_IMODE(info.st_mode):04o}; make it readable (chmod a+r)"


READERS: dict[str, _Reader] = {
    "file": _read_file,
}
