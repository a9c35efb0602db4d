"""From a manifest to a proved service: try the best profile, then the next, and say why each one failed."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.api.state import Service
from serving.backends.base import Backend, Inputs, LoadOptions
from serving.batching.encoders import EncoderPool
from serving.batching.lanes import Lane
from serving.cache import fetch
from serving.choice import hardware, select
from serving.choice.listing import startup_lines
from serving.contract import manifest
from serving.contract.profile import Machine, Precision, Profile
from serving.errors import BackendError, NoProfile, ServingError
from serving.settings.settings import Settings
from serving.start.engines import load_engines
from serving.start.layout import Layout
from serving.start.prove import prove
from serving.tasks.base import Spec, Tower
from serving.tasks.table import TASKS, load_spec
from serving.watch.metrics import Metrics

log = logging.getLogger(__name__)

# More tokens in one batch make nothing faster, only later: a CPU is busy with few, a GPU wants more.
MAX_BATCH_TOKENS_CPU, MAX_BATCH_TOKENS_GPU = 1024, 16384
MIN_BATCH_TOKENS, ALL_BATCH_TOKENS = 512, 2048  # of one of many streams, and of all that a CPU has
# OpenVINO prepares its kernels anew for each shape: rounding T up takes a little off the time per token of mixed
# batches. ONNX Runtime only loses by it. TensorRT for RTX compiles kernels and captures a CUDA graph for each shape.
WIDTH_MULTIPLES = {"openvino": 4, "tensorrt-rtx": 8}


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
    for profile in _preferred(select.candidates(decisions, settings.wanted_profile), settings.precision):
        decision = next(d for d in decisions if d.profile.id == profile.id)
        attempt = _attempt(profile, decision.gpus)
        if attempt in tried:  # SKUs of one compute capability share their files
            failures[profile.id] = f"it is the engine of {tried[attempt]}, which failed"
            log.info("Skipped profile: %s (%s): %s", profile.id, profile.name, failures[profile.id])
            continue
        lines = startup_lines(decisions, profile)
        if failures:  # the rest has been said
            lines = lines[next(n for n, line in enumerate(lines) if line.startswith("Selected profile:")) :]
        for line in lines:
            log.info(line)
        try:
            return _service(settings, offered, profile, machine, decision.gpus, metrics, phase)
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


def _preferred(ranked: Sequence[Profile], precision: Precision | None) -> list[Profile]:
    """The same, those of the wanted precision first."""
    if precision is not None and all(profile.precision is not precision for profile in ranked):
        log.warning("No profile that can run here is %s; the choice is made without NIM_PRECISION", precision)
    return sorted(ranked, key=lambda profile: precision is not None and profile.precision is not precision)


_Attempt = tuple[str, str, float, tuple[str, ...], tuple[int, ...]]


def _attempt(profile: Profile, gpus: tuple[int, ...]) -> _Attempt:
    """Everything that decides how a profile fares: two profiles with the same cannot fare differently."""
    checksums = tuple(sorted(file.checksum for file in profile.files))
    return profile.backend, profile.tags.get("precision", ""), profile.proof_min_cosine, checksums, gpus


def _service(
    settings: Settings,
    offered: manifest.Manifest,
    profile: Profile,
    machine: Machine,
    gpus: tuple[int, ...],
    metrics: Metrics,
    phase: _Phases,
) -> Service[Any]:
    if profile.tp != 1:
        raise BackendError(f"{profile.name} spans {profile.tp} GPUs, this server runs engines of one")
    with phase("fetch"):
        places = fetch.Places(
            root=settings.root,
            cache_path=settings.cache_path,
            repository=settings.repository,
            may_download=settings.may_download,
            token=settings.repository_token,
        )
        files = fetch.fetch_with(profile, places)
    missing = [name for name in ("tokenizer.json", "task.json", "proof.json") if name not in files]
    if missing:
        raise BackendError(f"the profile lists {', '.join(sorted(files))}; it lacks {', '.join(missing)}")
    spec, tokenizer = load_spec(files["task.json"]), files["tokenizer.json"]
    if spec.max_tokens > spec.shapes.max[1]:
        raise BackendError(f"texts may have {spec.max_tokens} tokens, the engine takes {spec.shapes.max[1]}")
    options = LoadOptions(
        cpu_isa=profile.tags.get("cpu_isa") or None,
        precision=profile.precision,
        num_threads=settings.num_threads or machine.num_cpus,
        yields=True,
        device_index=_cuda_index(machine, gpus),
        cache_dir=_kernel_cache(settings.cache_path),
    )
    engines, layout = load_engines(profile, spec, files, options, settings, phase)
    try:
        with phase("prove"):
            infer = {tower: _both_ways(engine) for tower, engine in engines.items()}
            report = prove(spec, infer, tokenizer, files["proof.json"], profile.proof_min_cosine)
            log.info("Proved %s: lowest cosine %.5f over %d items", profile.name, report.min_cosine, report.num_items)
        with phase("warm-up"):
            _warm_up(engines, spec, settings.max_batch_size, layout)
    except Exception:
        for engine in engines.values():
            engine.close()
        raise
    on_gpu = profile.backend in select.GPU_BACKENDS
    if gpus:
        metrics.watch_gpus()
    metrics.serves(row=profile.name, profile_id=profile.id, backend=profile.backend, precision=profile.precision)
    return Service(
        spec=spec,
        names=settings.served_model_names or (spec.served_name,),
        model=offered.model,
        release=offered.release or spec.release,
        profile=profile,
        manifest_text=settings.manifest_path.read_text("utf-8"),
        encoders=EncoderPool(
            partial(TASKS[spec.task].encoder, tokenizer, spec),
            settings.num_tokenizers or max(1, min(4, machine.num_cpus // 2)),
        ),
        lanes={
            tower.name: _lane(tower, engines[tower.name], layout, settings, metrics, on_gpu=on_gpu)
            for tower in spec.towers
        },
        created=int(time.time()),
        license_file=settings.root / "LICENSE",
        repository_override=settings.repository_override or "",
    )


def _lane(tower: Tower, engine: Backend, layout: Layout, settings: Settings, metrics: Metrics, *, on_gpu: bool) -> Lane:
    return Lane(
        collator=tower,
        infer=engine.infer,
        infer_alone=partial(engine.infer, alone=True) if layout.alone_threads else None,
        multiple=WIDTH_MULTIPLES.get(engine.name, 1),
        max_batch_items=settings.max_batch_size or tower.max_batch,
        max_batch_cost=_max_batch_tokens(layout, on_gpu=on_gpu),
        max_queue_items=settings.max_queue_size,
        num_streams=layout.num_streams,
        observer=metrics.lane(tower.name),
    )


def _max_batch_tokens(layout: Layout, *, on_gpu: bool) -> int:
    if on_gpu:
        return MAX_BATCH_TOKENS_GPU
    return min(MAX_BATCH_TOKENS_CPU, max(MIN_BATCH_TOKENS, ALL_BATCH_TOKENS // layout.num_streams))


def _both_ways(engine: Backend) -> Callable[[Inputs], NDArray[np.float32]]:
    """Batches run beside others and alone in turn: what an engine has for each is to be proved."""
    alone = itertools.cycle((True, False))
    return lambda inputs: engine.infer(inputs, alone=next(alone))


def _warm_up(engines: Mapping[str, Backend], spec: Spec, max_batch_size: int, layout: Layout) -> None:
    """One batch of the tuned shape, and on a GPU the largest too, in each context: too little memory shows now.

    No more tokens than the server will put together: a CPU's engine keeps the memory of its largest batch.
    """
    for tower in spec.towers:
        engine = engines[tower.name]
        on_gpu = engine.name in select.GPU_BACKENDS
        most = min(max_batch_size or tower.max_batch, tower.max_batch)
        for num_items, num_tokens in (spec.shapes.opt, *([spec.shapes.max] if on_gpu else [])):
            items = tower.sample(min(num_items, most), num_tokens)
            items = items[: max(1, _max_batch_tokens(layout, on_gpu=on_gpu) // tower.cost(items[0]))]
            for _ in range(layout.num_streams if on_gpu else 1):  # contexts are lent in turn
                engine.infer(tower.collate(items))


def _cuda_index(machine: Machine, gpus: tuple[int, ...]) -> int:
    """CUDA numbers the visible GPUs from 0 (in PCI order, which __main__ sets); NVML numbers all."""
    return [gpu.index for gpu in machine.gpus].index(gpus[0]) if gpus else 0


def _kernel_cache(cache_path: Path) -> Path | None:
    """Where compiled kernels may lie; a read-only cache still serves those of an earlier start."""
    folder = cache_path / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return folder if folder.is_dir() else None
    return folder


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
