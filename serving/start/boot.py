"""From a manifest to a proved service: try the best profile, then the next, and say why each one failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from serving.api.state import Service
from serving.choice import hardware, select, wanted
from serving.choice.listing import startup_lines
from serving.contract import manifest
from serving.contract.profile import Machine, Profile
from serving.errors import BackendError, NoProfile, ServingError
from serving.settings.settings import Settings
from serving.start.service import load_service
from serving.watch.metrics import Metrics

log = logging.getLogger(__name__)


def start(
    settings: Settings, metrics: Metrics, say: Callable[[str], None], machine: Machine | None = None
) -> Service[Any]:
    """Choose, verify, load, prove and warm up. say: told each phase. Raises ServingError when nothing may serve.

    A profile that fails is logged with its reason and the next one is tried, unless a person named the profile.
    """
    phase = _Phases(metrics, say)
    with phase("manifest"):
        offered = manifest.read(settings.manifest_path)
    with phase("hardware"):
        machine = machine or hardware.detect(cpu_only=settings.cpu_only, visible_gpus=settings.visible_gpus)
    decisions = select.decide(offered.profiles, machine)
    failures: dict[str, str] = {}
    tried: dict[_Attempt, str] = {}  # -> the profile that failed
    ranked = wanted.candidates(decisions, settings.wanted_profile)
    if settings.precision is not None and all(profile.precision is not settings.precision for profile in ranked):
        log.warning("No profile that can run here is %s; the choice is made without NIM_PRECISION", settings.precision)
    for profile in wanted.by_precision(ranked, settings.precision):
        decision = next(d for d in decisions if d.profile.id == profile.id)
        attempt = _attempt(profile, decision.gpus)
        if attempt in tried:  # SKUs of one compute capability share their files
            failures[profile.id] = f"it is the engine of {tried[attempt]}, which failed"
            log.info("Skipped profile: %s (%s): %s", profile.id, profile.name, failures[profile.id])
            continue
        _log_choice(startup_lines(decisions, profile), again=bool(failures))
        try:
            return load_service(settings, offered, profile, machine, decision.gpus, metrics, phase)
        except Exception as error:  # whatever is wrong with one profile's files, the next may be whole
            if not isinstance(error, ServingError):
                log.exception("profile %s failed unexpectedly", profile.name)
                error = BackendError(f"{type(error).__name__}: {error}")
            if settings.wanted_profile is not None:
                raise error from None
            failures[profile.id] = f"{type(error).__name__}: {error}"
            tried[attempt] = profile.name
            log.error("Profile %s (%s) failed, trying the next: %s", profile.id, profile.name, error)
    raise NoProfile(
        [f"{d.profile.id} ({d.profile.name}): {d.refusal or failures.get(d.profile.id)}" for d in decisions]
    )


def _log_choice(lines: Sequence[str], *, again: bool) -> None:
    """Log what was found and chosen; again: only the choice, since the rest was logged before."""
    first = next(n for n, line in enumerate(lines) if line.startswith("Selected profile:")) if again else 0
    for line in lines[first:]:
        log.info(line)


_Attempt = tuple[str, str, float, tuple[str, ...], tuple[int, ...]]


def _attempt(profile: Profile, gpus: tuple[int, ...]) -> _Attempt:
    """Everything that decides how a profile fares: two profiles with the same cannot fare differently."""
    checksums = tuple(sorted(file.checksum for file in profile.files))
    return profile.backend, profile.tags.get("precision", ""), profile.proof_min_cosine, checksums, gpus


class _Phases:
    """Times each phase of the start."""

    def __init__(self, metrics: Metrics, say: Callable[[str], None]) -> None:
        self._metrics, self._say = metrics, say

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._say(f"loading: {name}")
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._metrics.load_phase.labels(name).set(seconds)
            log.info("Phase %s took %.2f s", name, seconds)
