"""Turn a profile's files into bytes that are known to be the right ones, and list every file that is not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from serving.cache import local
from serving.cache.places import Finder, Places, Say
from serving.cache.sources.base import SourceError
from serving.contract.profile import Profile
from serving.errors import CacheError

log = logging.getLogger(__name__)


def fetch(profile: Profile, places: Places) -> dict[str, bytes]:
    """The profile's files by their workspace name, each checked against the manifest's size and checksum.

    The check is made on the very bytes that are returned, and before anything parses them: an engine file is executable
    code. A file that is embedded or cached is not asked for elsewhere. Raises CacheError that lists every bad file.
    """
    contents: dict[str, bytes] = {}
    with _collected(f"profile {profile.id} ({profile.name})") as problems:
        finder = Finder(places, log.info)
        for file in profile.files:
            with _noted(problems, [f"{file.path} ({file.uri})"]):
                contents[file.path] = finder.bytes_of(file)
    return contents


def ensure(profiles: Sequence[Profile], places: Places, say: Say) -> Mapping[str, str]:
    """See to it that every file of profiles is embedded or in the cache, whole: checksum -> where from.

    Each file is read once however many profiles share it, and none is held in memory. Raises CacheError that lists
    every bad file, after the good ones are in the cache.
    """
    files = {file.checksum: file for profile in profiles for file in profile.files}
    users: dict[str, list[str]] = {}
    for profile in profiles:
        for file in profile.files:
            users.setdefault(file.checksum, []).append(f"{profile.id} ({profile.name}): {file.path} ({file.uri})")
    sources: dict[str, str] = {}
    with _collected(f"files of {len(profiles)} profile(s)") as problems:
        finder = Finder(places, say)
        missing = []
        for checksum, file in files.items():
            with _noted(problems, users[checksum]):
                if where := finder.verified(file):
                    sources[checksum] = where
                else:
                    missing.append(file)
        finder.check_space(missing)
        for file in missing:
            with _noted(problems, users[file.checksum]):
                sources[file.checksum] = finder.download(file)
    return sources


@contextmanager
def _collected(where: str) -> Iterator[list[str]]:
    """The problems of all files, raised at the end; a folder that is closed is the last."""
    problems: list[str] = []
    try:
        yield problems
    except local.NotWritable as error:
        problems.append(str(error))
    if problems:
        remedy = "nothing unverified is used: pull the image again, copy the mirror again, or fill the cache again"
        raise CacheError(where, [*problems, remedy])


@contextmanager
def _noted(problems: list[str], names: Sequence[str]) -> Iterator[None]:
    """What is wrong with one file, under each name that it goes by."""
    try:
        yield
    except SourceError as error:
        problems += [f"{name}: {error}" for name in names]
