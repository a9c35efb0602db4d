"""Measure CLIP's two engines: cosine to the fp32 reference, zero-shot classification of labelled pictures."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import images, retrieval
from pipelines.errors import GateError
from pipelines.measure import speed
from pipelines.measure.embed import cosine
from pipelines.measure.runner import (
    SCHEMA_VERSION,
    Items,
    Rows,
    Runner,
    is_reference,
    open_runner,
    realized,
    rounded,
    unit,
)
from pipelines.onnx_graph import external_data
from pipelines.stage import StageRequest, StageResult
from serving.contract.profile import Precision
from serving.tasks.base import Tower, suffixed
from serving.tasks.clip import ClipSpec, Encoder, load_golden
from serving.tasks.table import TASKS, load_spec

TEXT, IMAGE = TASKS["clip"].towers
INVARIANCE_ITEMS, INVARIANCE_BATCH = 12, 24
SPEED_PICTURES = 8  # at once: more only take longer on the machine of a factory
GALLERY_PICTURES, GALLERY_CAPTIONS, GALLERY_PIXELS = 12, 3, 160  # what the report shows


def measure(request: StageRequest, scratch: Path) -> StageResult:
    """metrics.json, or reference.json."""
    params, inputs = request.params, request.inputs
    spec = load_spec(inputs["task.json"].read_bytes())
    if not isinstance(spec, ClipSpec):
        raise GateError(f"task.json is of a {spec.task} model, the engines are judged as clip")
    encoder = Encoder(inputs["tokenizer.json"].read_bytes(), spec)
    towers = {tower.name: tower for tower in spec.towers}
    labelled = _labelled(encoder, params)
    if params["evaluated"] == "reference":
        return _reference(towers, labelled, request, scratch)
    precision = Precision(params["precision"])
    engines = {name: external_data.stage_input(inputs, suffixed("engine", name), scratch) for name in towers}
    started = time.monotonic()
    opened = {name: open_runner(engines[name], precision, params, tower, scratch) for name, tower in towers.items()}
    runners = {name: runner for name, (runner, _) in opened.items()}
    golden = load_golden(inputs["golden.json"].read_bytes())
    items: dict[str, Items] = {
        TEXT: encoder.encode_texts(golden.texts, truncate="END"),
        IMAGE: images.encode(encoder, golden.images, "golden"),
    }
    rows = {name: runner.vectors(items[name]) for name, runner in runners.items()}
    found = labelled.run(runners)
    shares = {
        name: realized(runner.backend, engines[name], inputs.get(suffixed("typed.onnx", name)))
        for name, runner in runners.items()
    }
    vectors = {TEXT: golden.text_vectors, IMAGE: golden.image_vectors}
    cosines = {name: cosine(rows[name], vectors[name]) for name in towers}
    metrics = {
        "schema_version": SCHEMA_VERSION,
        "task": params["task"],
        "precision": str(precision),
        "evaluated": params["evaluated"],
        "judged_with": opened[TEXT][1],
        "size_bytes": sum(external_data.size_bytes(inputs, suffixed("engine", name)) for name in towers),
        "cosine": cosine(
            np.concatenate(list(rows.values())), np.concatenate([golden.text_vectors, golden.image_vectors])
        ),
        "num_golden_pictures": len(golden.images),
        "text_cosine_min": cosines[TEXT]["min"],
        "image_cosine_min": cosines[IMAGE]["min"],
        "batch_invariance": _batch_invariance(runners, items),
        "zero_shot": _zero_shot(found, labelled, towers, inputs, scratch),
        "gallery": gallery(found, labelled),
        # Of the tower that kept less to the precision.
        "realized_precision": min(shares.values(), key=lambda share: share.get(str(precision), 0.0)),
    }
    for runner in runners.values():
        runner.backend.close()
    judged_s = time.monotonic() - started
    if params.get("speed"):
        metrics["speed"] = _speed(engines, precision, towers, spec, items, params, inputs)
    path = request.output_dir / "metrics.json"
    path.write_bytes(json.dumps(metrics, sort_keys=True, allow_nan=False).encode())
    facts = {
        "cosine_mean": metrics["cosine"]["mean"],
        "cosine_min": metrics["cosine"]["min"],
        "top1": metrics["zero_shot"]["top1"],
        "judged_with": metrics["judged_with"],
        "accuracy_s": round(judged_s, 1),
    }
    return StageResult(outputs={"metrics.json": path}, facts=facts)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What two engines make of the labelled pictures."""

    cosines: NDArray[np.float64]  # (pictures, classes)
    right: NDArray[np.float64]  # (pictures,): 1 where the nearest caption is the picture's own


@dataclass(frozen=True, kw_only=True)
class _Labelled:
    """The test pictures and the captions to choose from, as both towers take them."""

    name: str  # "pictures"
    digest: str
    classes: tuple[str, ...]
    files: tuple[bytes, ...]
    labels: NDArray[np.int64]  # (pictures,)
    texts: Items
    encoder: Encoder

    def run(self, runners: Mapping[str, Runner]) -> Found:
        captions = runners[TEXT].vectors(self.texts)
        cosines = self._image_vectors(runners[IMAGE]).astype(np.float64) @ captions.astype(np.float64).T
        return Found(cosines=cosines, right=(cosines.argmax(axis=1) == self.labels).astype(np.float64))

    def _image_vectors(self, runner: Runner) -> Rows:
        """(pictures, D). Encoded a part at a time: 500 pictures of 224 pixels a side are 300 MB of numbers."""
        parts = [self.files[i : i + 64] for i in range(0, len(self.files), 64)]
        return np.concatenate([runner.vectors(images.encode(self.encoder, part, "test")) for part in parts])


def gallery(found: Found, labelled: _Labelled) -> list[dict[str, Any]]:
    """Some test pictures, spread over the classes, each with the captions nearest to it."""
    num = len(labelled.files)
    entries = []
    for index in sorted({int(i) for i in np.linspace(0, num - 1, min(GALLERY_PICTURES, num)).round()}):
        cosines = found.cosines[index]
        nearest = np.argsort(-cosines, kind="stable")[:GALLERY_CAPTIONS]
        entries.append(
            {
                "image": base64.b64encode(_thumbnail(labelled.files[index])).decode("ascii"),
                "class": labelled.classes[labelled.labels[index]],
                "nearest": [[labelled.classes[i], round(float(cosines[i]), 4)] for i in nearest],
            }
        )
    return entries


def _labelled(encoder: Encoder, params: Mapping[str, Any]) -> _Labelled:
    folder = Path(params.get("source_base", ".")) / params["pictures"]
    shown = images.read(folder)
    test = shown.splits["test"]
    return _Labelled(
        name=folder.name,
        digest=images.pictures_digest(folder),
        classes=shown.classes,
        files=tuple(data for data, _ in test),
        labels=np.array([label for _, label in test]),
        texts=encoder.encode_texts(shown.classes, truncate="END"),
        encoder=encoder,
    )


def _zero_shot(
    found: Found, labelled: _Labelled, towers: Mapping[str, Tower], inputs: Mapping[str, Path], scratch: Path
) -> dict[str, Any]:
    """How many pictures lie nearest to their own caption, and how many fewer than with the fp32 reference."""
    expected = found.right if _is_reference(towers, inputs) else _expected(labelled, towers, inputs, scratch)
    drop = retrieval.drop(expected, found.right)
    return {
        "set": labelled.name,
        "num_images": len(labelled.files),
        "num_classes": len(labelled.classes),
        "top1": rounded(found.right.mean()),
        "reference_top1": rounded(expected.mean()),
        "drop": rounded(drop.mean),
        "drop_low": rounded(drop.low),
        "drop_high": rounded(drop.high),
    }


def _reference(towers: Mapping[str, Tower], labelled: _Labelled, request: StageRequest, scratch: Path) -> StageResult:
    right = _expected(labelled, towers, request.inputs, scratch)
    content = {"set": labelled.name, "pictures_digest": labelled.digest, "right": [int(value) for value in right]}
    path = request.output_dir / "reference.json"
    path.write_bytes(json.dumps(content, sort_keys=True).encode())
    return StageResult(outputs={"reference.json": path}, facts={"top1": rounded(right.mean())})


def _is_reference(towers: Mapping[str, Tower], inputs: Mapping[str, Path]) -> bool:
    """The generic fp32 engines are the reference itself, where none was recorded."""
    if "reference.json" in inputs:
        return False
    return all(is_reference(inputs, name) for name in towers)


def _expected(
    labelled: _Labelled, towers: Mapping[str, Tower], inputs: Mapping[str, Path], scratch: Path
) -> NDArray[np.float64]:
    """What the fp32 reference gets right: as recorded (reference.json), else by running fp32.onnx of both towers."""
    if "reference.json" in inputs:
        recorded = json.loads(inputs["reference.json"].read_bytes())
        if recorded["pictures_digest"] != labelled.digest:
            raise GateError(
                f"reference.json is of other pictures ({recorded['set']}) than {labelled.name} holds now; "
                "measure the reference again"
            )
        return np.array(recorded["right"], dtype=np.float64)
    how = {"backend": "onnxruntime", "evaluated": "fp32 reference"}
    runners = {
        name: open_runner(
            external_data.stage_input(inputs, suffixed("fp32.onnx", name), scratch), Precision.FP32, how, tower, scratch
        )[0]
        for name, tower in towers.items()
    }
    right = labelled.run(runners).right
    for runner in runners.values():
        runner.backend.close()
    return right


def _batch_invariance(runners: Mapping[str, Runner], items: Mapping[str, Items]) -> dict[str, Any]:
    """Items alone against the same in a batch: texts of mixed lengths, and pictures beside others."""
    values: list[float] = []
    for name, runner in runners.items():
        ordered = sorted(items[name], key=runner.tower.cost)
        size = min(INVARIANCE_BATCH, runner.tower.max_batch, len(ordered))
        mixed = [ordered[i] for i in np.linspace(0, len(ordered) - 1, size).astype(int)]
        probes = np.linspace(0, size - 1, min(INVARIANCE_ITEMS, size)).astype(int)
        together = unit(runner.run(mixed))[probes].astype(np.float64)
        alone = np.concatenate([unit(runner.run([mixed[i]])) for i in probes]).astype(np.float64)
        values.extend(np.einsum("nd,nd->n", together, alone))
    return {"min_cosine": rounded(min(values)), "num_items": len(values), "batch_size": INVARIANCE_BATCH}


def _speed(
    engines: Mapping[str, Path],
    precision: Precision,
    towers: Mapping[str, Tower],
    spec: ClipSpec,
    items: Mapping[str, Items],
    params: Mapping[str, Any],
    inputs: Mapping[str, Path],
) -> dict[str, Any]:
    shown = list(items[IMAGE])
    batch = [shown[i % len(shown)] for i in range(min(SPEED_PICTURES, towers[IMAGE].max_batch))]
    pixels = (3, spec.image_size, spec.image_size)
    loads = {
        TEXT: speed.text_loads(np.concatenate(items[TEXT]), towers[TEXT], spec),
        IMAGE: speed.Loads(batch=batch, single=batch[:1], shape=(len(batch), *pixels), query_shape=(1, *pixels)),
    }
    return speed.of_towers(
        {
            name: speed.measure(
                engines[name],
                precision,
                loads[name],
                params,
                tower,
                baseline=inputs.get(suffixed("baseline", name)),
            )
            for name, tower in towers.items()
        }
    )


def _thumbnail(data: bytes) -> bytes:
    """A picture as PNG, small enough to stand in a page."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    buffer = io.BytesIO()
    ImageOps.contain(picture, (GALLERY_PIXELS, GALLERY_PIXELS)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
