"""One profile as a service: its files fetched, its engines loaded, proved and warmed up, each behind its queue."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.api.state import Service
from serving.backends.base import Backend, Inputs, LoadOptions
from serving.batching.encoders import EncoderPool
from serving.batching.lanes import Lane
from serving.cache.fetch import fetch
from serving.choice import select
from serving.contract import manifest
from serving.contract.profile import Machine, Profile
from serving.errors import BackendError
from serving.settings.settings import Settings
from serving.start.engines import Phase, load_engines
from serving.start.places import places_of
from serving.start.prove import prove
from serving.tasks.base import Spec, Tower
from serving.tasks.table import TASKS, load_spec
from serving.watch.metrics import Metrics

log = logging.getLogger(__name__)

# A CPU runs no faster with more tokens in one batch, only later. The figure for a GPU is not measured.
MAX_BATCH_TOKENS_CPU, MAX_BATCH_TOKENS_GPU = 1024, 16384
MIN_BATCH_TOKENS, ALL_BATCH_TOKENS = 512, 2048  # of one of many streams, and of all that a CPU has
# OpenVINO prepares its kernels anew for each shape: rounding T up takes a little off the time per token of mixed
# batches. ONNX Runtime only loses by it. TensorRT for RTX compiles kernels for each shape.
WIDTH_MULTIPLES = {"openvino": 4, "tensorrt-rtx": 8}


def load_service(
    settings: Settings,
    offered: manifest.Manifest,
    profile: Profile,
    machine: Machine,
    gpus: tuple[int, ...],
    metrics: Metrics,
    phase: Phase,
) -> Service[Any]:
    """A service that answers with this profile's engines. Raises ServingError, or what damaged files raise.

    gpus: where they run, by NVML's index.
    """
    if profile.tp != 1:
        raise BackendError(f"{profile.name} spans {profile.tp} GPUs, this server runs engines of one")
    with phase("fetch"):
        files = fetch(profile, places_of(settings))
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
    engines, options = load_engines(profile, spec, files, options, settings, phase)
    try:
        with phase("prove"):
            infer = {tower: _both_ways(engine) for tower, engine in engines.items()}
            report = prove(spec, infer, tokenizer, files["proof.json"], profile.proof_min_cosine)
            log.info("Proved %s: lowest cosine %.5f over %d items", profile.name, report.min_cosine, report.num_items)
        with phase("warm-up"):
            _warm_up(engines, spec, settings.max_batch_size, options)
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
            tower.name: _lane(tower, engines[tower.name], options, settings, metrics, on_gpu=on_gpu)
            for tower in spec.towers
        },
        created=int(time.time()),
        license_file=settings.root / "LICENSE",
        repository_override=settings.repository_override or "",
    )


def _lane(
    tower: Tower, engine: Backend, options: LoadOptions, settings: Settings, metrics: Metrics, *, on_gpu: bool
) -> Lane:
    return Lane(
        collator=tower,
        infer=engine.infer,
        infer_alone=partial(engine.infer, alone=True) if options.alone_threads else None,
        multiple=WIDTH_MULTIPLES.get(engine.name, 1),
        max_batch_items=settings.max_batch_size or tower.max_batch,
        max_batch_cost=_max_batch_tokens(options, on_gpu=on_gpu),
        max_queue_items=settings.max_queue_size,
        num_streams=options.num_streams,
        observer=metrics.lane(tower.name),
    )


def _max_batch_tokens(options: LoadOptions, *, on_gpu: bool) -> int:
    if on_gpu:
        return MAX_BATCH_TOKENS_GPU
    return min(MAX_BATCH_TOKENS_CPU, max(MIN_BATCH_TOKENS, ALL_BATCH_TOKENS // options.num_streams))


def _both_ways(engine: Backend) -> Callable[[Inputs], NDArray[np.float32]]:
    """Batches run beside others and alone in turn: what an engine has for each is to be proved."""
    alone = itertools.cycle((True, False))
    return lambda inputs: engine.infer(inputs, alone=next(alone))


def _warm_up(engines: Mapping[str, Backend], spec: Spec, max_batch_size: int, options: LoadOptions) -> None:
    """One batch of the tuned shape, and on a GPU the largest too, in each context: too little memory shows now.

    No more tokens than the server will put together: a CPU's engine keeps the memory of its largest batch.
    """
    for tower in spec.towers:
        engine = engines[tower.name]
        on_gpu = engine.name in select.GPU_BACKENDS
        most = min(max_batch_size or tower.max_batch, tower.max_batch)
        for num_items, num_tokens in (spec.shapes.opt, *([spec.shapes.max] if on_gpu else [])):
            items = tower.sample(min(num_items, most), num_tokens)
            items = items[: max(1, _max_batch_tokens(options, on_gpu=on_gpu) // tower.cost(items[0]))]
            for _ in range(options.num_streams if on_gpu else 1):  # contexts are lent in turn
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
