"""From a manifest to a proved service: try the best profile, then the next, and say why each one failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from serving import backends, cache, hardware, manifest, select
from serving.api.state import Service
from serving.backends.base import Backend, LoadOptions
from serving.batcher import Batcher
from serving.encoders import EncoderPool
from serving.errors import BackendError, NoProfile, ServingError
from serving.listing import startup_lines
from serving.metrics import Metrics
from serving.profile import Machine, Profile
from serving.prove import prove
from serving.settings import Settings
from serving.tasks.embed import EmbedSpec, Encoder, collate, load_golden, load_spec, round_up

log = logging.getLogger(__name__)

ENGINES = ("engine.plan", "engine.blob", "engine.onnx")
# More tokens in one batch make nothing faster, only later: a CPU is busy with few, a GPU wants more.
MAX_BATCH_TOKENS_CPU, MAX_BATCH_TOKENS_GPU = 4096, 16384
# OpenVINO prepares its kernels anew for each shape: rounding T up takes a quarter off the time per token of mixed
# batches. ONNX Runtime only loses by it.
WIDTH_MULTIPLES = {"openvino": 16}


def start(settings: Settings, metrics: Metrics, say: Callable[[str], None], machine: Machine | None = None) -> Service:
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
    for profile in select.candidates(decisions, settings.wanted_profile):
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
) -> Service:
    if profile.tp != 1:
        raise BackendError(f"{profile.name} spans {profile.tp} GPUs, this server runs engines of one")
    with phase("fetch"):
        files = cache.fetch(profile, root=settings.root, override=settings.repository_override)
    engine_name = next((name for name in ENGINES if name in files), None)
    missing = [name for name in ("tokenizer.json", "task.json", "proof.json") if name not in files]
    if engine_name is None or missing:
        absent = [*([] if engine_name else [" or ".join(ENGINES)]), *missing]
        raise BackendError(f"the profile lists {', '.join(sorted(files))}; it lacks {', '.join(absent)}")
    spec, tokenizer = load_spec(files["task.json"]), files["tokenizer.json"]
    if spec.max_tokens > spec.shapes.max[1]:
        raise BackendError(f"texts may have {spec.max_tokens} tokens, the engine takes {spec.shapes.max[1]}")
    with phase("load"):
        options = LoadOptions(
            cpu_isa=profile.tags.get("cpu_isa") or None,
            precision=profile.precision,
            num_threads=settings.num_threads or machine.num_cpus,
            device_index=_cuda_index(machine, gpus),
            cache_dir=_kernel_cache(settings.cache_path),
        )
        backend = backends.load(profile.backend, files.pop(engine_name), options)
    try:
        with phase("prove"):
            encoder, golden = Encoder(tokenizer, spec), load_golden(files["proof.json"])
            report = prove(backend.infer, encoder, spec, golden, profile.proof_min_cosine)
            log.info("Proved %s: lowest cosine %.5f over %d texts", profile.name, report.min_cosine, report.num_texts)
        with phase("warm-up"):
            _warm_up(backend, spec)
    except Exception:
        backend.close()
        raise
    on_gpu, multiple = profile.backend in select.GPU_BACKENDS, WIDTH_MULTIPLES.get(profile.backend, 1)
    metrics.serves(row=profile.name, profile_id=profile.id, backend=backend.name, precision=profile.precision)
    return Service(
        spec=spec,
        names=settings.served_model_names or (spec.served_name,),
        model=offered.model,
        release=offered.release or spec.release,
        profile=profile,
        manifest_text=settings.manifest_path.read_text("utf-8"),
        encoders=EncoderPool(tokenizer, spec, settings.num_tokenizers or max(1, min(4, machine.num_cpus // 2))),
        batcher=Batcher(
            prepare=lambda items: collate(items, spec, multiple=multiple),
            run=backend.infer,
            cost=lambda item: round_up(item.size, multiple, spec),
            max_batch_items=spec.shapes.max[0],
            max_batch_cost=MAX_BATCH_TOKENS_GPU if on_gpu else MAX_BATCH_TOKENS_CPU,
            max_queue_items=settings.max_queue_size,
            observer=metrics,
        ),
        created=int(time.time()),
        license_file=settings.root / "LICENSE",
        repository_override=settings.repository_override or "",
    )


def _warm_up(backend: Backend, spec: EmbedSpec) -> None:
    """One batch of the tuned shape, and on a GPU the largest too: too little memory shows now, not under load."""
    for num_items, num_tokens in (spec.shapes.opt, *([spec.shapes.max] if backend.name in select.GPU_BACKENDS else [])):
        text = np.full(num_tokens, spec.pad_token_id, dtype=np.int64)
        backend.infer(collate([text] * num_items, spec))


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
