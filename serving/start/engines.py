"""Load a profile's engines, one for each tower, with the layout that suits this machine's cores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from serving import backends
from serving.backends.base import Backend, LoadOptions
from serving.choice.select import GPU_BACKENDS
from serving.contract.profile import Profile
from serving.errors import BackendError
from serving.settings.settings import Settings
from serving.start import layout
from serving.start.layout import Layout
from serving.tasks.base import Spec, file_stem

ENDINGS = (".plan", ".blob", ".onnx")
SMALL_ENGINE_BYTES = 512 * 2**20  # such an engine has two contexts on a GPU; what they gain is not measured
LAYOUTS = "2"  # what is remembered and how it was found out; other layouts are measured again
Phase = Callable[[str], AbstractContextManager[None]]


def load_engines(
    profile: Profile, spec: Spec, files: dict[str, bytes], options: LoadOptions, settings: Settings, phase: Phase
) -> tuple[dict[str, Backend], LoadOptions]:
    """Every tower's engine, and the options that all are loaded with. The engines' bytes are let go.

    Raises BackendError.
    """
    names = _names(spec, files)
    if profile.backend in GPU_BACKENDS:
        with phase("load"):
            data = {tower: files.pop(name) for tower, name in names.items()}
            small = max(map(len, data.values())) <= SMALL_ENGINE_BYTES
            options = replace(options, num_streams=settings.num_streams or (2 if small else 1))
            return _load_all(profile.backend, data, options), options
    file = _layout_file(options.cache_dir, profile, options.num_threads, settings.performance_mode)
    decided = _wanted(settings, options.num_threads) or layout.recall(file, options.num_threads)
    data = {tower: files.pop(name) for tower, name in names.items()}
    if decided is not None:
        options = _with(options, decided)
    with phase("load"):
        engines = _load_all(profile.backend, data, options)
    if decided is not None:
        return engines, options
    with phase("layout"):  # of the tower that has most to compute; the others follow it
        main = max(spec.towers, key=lambda tower: len(data[tower.name]))
        slowdown = float("inf") if settings.performance_mode == "throughput" else None
        chosen, engine = layout.choose(
            engines.pop(main.name),
            lambda other: backends.load(profile.backend, data[main.name], _with(options, other)),
            main,
            options.num_threads,
            slowdown,
        )
        options = _with(options, chosen)
        if chosen.num_streams > 1:
            for tower in tuple(engines):
                engines.pop(tower).close()
            others = {tower: content for tower, content in data.items() if tower != main.name}
            engines = _load_all(profile.backend, others, options)
        engines[main.name] = engine
        layout.remember(file, chosen)
    return engines, options


def _names(spec: Spec, files: Mapping[str, bytes]) -> dict[str, str]:
    """Tower -> its engine's file. Raises BackendError."""
    names = {tower.name: [file_stem(tower.name) + ending for ending in ENDINGS] for tower in spec.towers}
    if lacking := [" or ".join(one) for one in names.values() if files.keys().isdisjoint(one)]:
        raise BackendError(f"the profile lists {', '.join(sorted(files))}; it lacks {', '.join(lacking)}")
    return {tower: next(name for name in one if name in files) for tower, one in names.items()}


def _load_all(backend: str, data: Mapping[str, bytes], options: LoadOptions) -> dict[str, Backend]:
    engines: dict[str, Backend] = {}
    try:
        for tower, content in data.items():
            engines[tower] = backends.load(backend, content, options)
    except Exception:
        for engine in engines.values():
            engine.close()
        raise
    return engines


def _wanted(settings: Settings, num_threads: int) -> Layout | None:
    """What a person has decided."""
    if settings.num_streams:
        return Layout(num_streams=min(settings.num_streams, num_threads), num_threads=num_threads)
    return Layout(num_streams=1, num_threads=num_threads) if settings.performance_mode == "latency" else None


def _with(options: LoadOptions, chosen: Layout) -> LoadOptions:
    return replace(options, num_streams=chosen.num_streams, alone_threads=chosen.alone_threads)


def _layout_file(cache_dir: Path | None, profile: Profile, num_threads: int, mode: str) -> Path | None:
    """By engine, CPU, threads and mode: what one machine measured says nothing of another that shares the cache."""
    if cache_dir is None:
        return None
    checksums = sorted(file.checksum for file in profile.files)
    key = "|".join([LAYOUTS, profile.backend, *checksums, str(num_threads), mode, _cpu_model()])
    return cache_dir / "layouts" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
