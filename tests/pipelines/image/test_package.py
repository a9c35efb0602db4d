"""What ships of a model, and what does not."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import PackageError
from pipelines.image import package
from pipelines.image.package import Candidate
from pipelines.matrix.load import load
from pipelines.matrix.values import Matrix, Model, Row
from serving.contract import manifest
from serving.contract.profile import Precision
from serving.tasks.base import ONLY
from tests.support.verdicts import verdict

MATRIX = Path(__file__).parents[3] / "sku_matrix.yaml"
VERSIONS = {"tensorrt-rtx": "1.7.1.116", "tensorrt": "11.4.0", "openvino": "2026.4.1", "onnxruntime": "1.31.1"}


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return load(MATRIX)


@pytest.fixture
def model(matrix: Matrix) -> Model:
    return next(iter(matrix.models.values()))


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in package.SHARED:
        (folder / name).write_text(f"{name} of a model")
    return {name: folder / name for name in package.SHARED}


def row(matrix: Matrix, model: Model, sku: str, precision: str, tp: int = 1) -> Row:
    return Row(model=model, sku=matrix.skus[sku], precision=Precision(precision), tp=tp)


def candidate(tmp_path: Path, of: Row, content: str, passed: bool = True, **changed: Any) -> Candidate:
    engine = tmp_path / f"{of.name}.engine"
    engine.write_text(content)
    return Candidate(
        row=of, engines={ONLY: engine}, verdict=verdict(changed.pop("row", of.name), engine, passed=passed, **changed)
    )


def test_a_package_has_a_manifest_whose_every_file_is_there_under_its_digest(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    rows = [row(matrix, model, "cpu-x86-64", "fp32"), row(matrix, model, "l40s", "fp8")]
    made = package.package(model, [candidate(tmp_path, r, r.name) for r in rows], shared, VERSIONS, tmp_path / "dist")
    root = tmp_path / "dist" / package.ROOT
    read = manifest.read(root / package.MANIFEST)
    assert {profile.name for profile in read.profiles} == {r.name for r in rows}
    for profile in read.profiles:
        assert [file.path for file in profile.files] == sorted(file.path for file in profile.files)
        for file in profile.files:
            assert file.uri == f"blobs/blake3/{file.checksum.removeprefix('blake3:')}"
            assert (root / file.uri).stat().st_size == file.size_bytes
    assert (tmp_path / "dist/model_manifest.yaml").read_bytes() == (root / package.MANIFEST).read_bytes()
    assert made.warnings == ()


def test_skus_that_share_an_engine_share_its_file(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    rows = [row(matrix, model, sku, "fp16") for sku in ("l40s", "l4", "rtx-4090")]
    made = package.package(model, [candidate(tmp_path, r, "one plan") for r in rows], shared, VERSIONS, tmp_path / "d")
    assert len({profile.file("engine.plan").uri for profile in made.manifest.profiles}) == 1
    assert len({profile.id for profile in made.manifest.profiles}) == 3
    assert len(list((tmp_path / "d" / package.ROOT / "blobs/blake3").iterdir())) == 1 + len(package.SHARED)


def test_the_tags_of_a_gpu_profile_say_where_it_runs(matrix: Matrix, model: Model) -> None:
    tags = package.tags_of(row(matrix, model, "l40s", "fp8"), VERSIONS, 40_000_000)
    assert tags == {
        "backend": "tensorrt-rtx",
        "model_type": "tensorrt",
        "sku": "l40s",
        "gpu": "l40s",
        "gpu_device": "26b9:10de",
        "compute_capability": "8.9",
        "precision": "fp8",
        "tp": "1",
        "number_of_gpus": "1",
        "trt_version": "1.7.1.116",
        "cpu_arch": "x86_64",
        "min_vram_per_device_gb": "2",
        "min_driver_version": "580",
    }


def test_a_profile_over_two_gpus_says_so_and_needs_less_memory_on_each(matrix: Matrix, model: Model) -> None:
    one = package.tags_of(row(matrix, model, "l40s", "fp16", tp=1), VERSIONS, 20 * 10**9)
    two = package.tags_of(row(matrix, model, "l40s", "fp16", tp=2), VERSIONS, 20 * 10**9)
    assert (two["number_of_gpus"], two["tp"]) == ("2", "2")
    assert (one["min_vram_per_device_gb"], two["min_vram_per_device_gb"]) == ("41", "21")


def test_the_tags_of_cpu_profiles_name_instructions_and_version_only_where_they_bind(
    matrix: Matrix, model: Model
) -> None:
    bound = package.tags_of(row(matrix, model, "cpu-avx512-bf16", "bf16"), VERSIONS, 1)
    assert (bound["backend"], bound["openvino_version"]) == ("openvino", "2026.4.1")
    assert "avx512_bf16" in bound["cpu_features"].split(",")
    generic = package.tags_of(row(matrix, model, "cpu-x86-64", "fp32"), VERSIONS, 1)
    assert generic == {
        "backend": "onnxruntime",
        "model_type": "onnx",
        "sku": "cpu-x86-64",
        "precision": "fp32",
        "tp": "1",
    }


def test_a_row_that_failed_is_left_out_with_its_reason_and_the_model_ships_with_the_others(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    good = candidate(tmp_path, row(matrix, model, "cpu-x86-64", "fp32"), "good")
    bad = candidate(tmp_path, row(matrix, model, "l40s", "int8"), "bad", passed=False)
    made = package.package(model, [good, bad], shared, VERSIONS, tmp_path / "dist")
    assert [profile.name for profile in made.manifest.profiles] == [good.row.name]
    assert made.left_out == {bad.row.name: ("cosine 0.88 is below 0.98",)}


def test_an_engine_that_was_changed_after_its_verdict_does_not_ship(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    changed = candidate(tmp_path, row(matrix, model, "cpu-x86-64", "fp32"), "judged")
    changed.engines[ONLY].write_text("other bytes")
    with pytest.raises(PackageError, match=r"the verdict judged sha256:.*judge it again"):
        package.package(model, [changed], shared, VERSIONS, tmp_path / "dist")


def test_the_verdict_of_another_row_does_not_count(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    swapped = candidate(tmp_path, row(matrix, model, "l40s", "fp16"), "x", row="m__l4__fp16__tp1")
    with pytest.raises(PackageError, match="its verdict is of m__l4__fp16__tp1"):
        package.package(model, [swapped], shared, VERSIONS, tmp_path / "dist")


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path, matrix: Matrix, model: Model) -> None:
    changed = candidate(tmp_path, row(matrix, model, "l40s", "fp16"), "judged")
    changed.engines[ONLY].write_text("other bytes")
    with pytest.raises(PackageError) as caught:
        package.package(model, [changed], {}, VERSIONS, tmp_path / "dist")
    for words in ("tokenizer.json", "task.json", "proof.json", changed.row.name):
        assert words in str(caught.value)


def test_a_model_of_which_nothing_passed_is_refused_with_every_reason_and_its_old_package_stays(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    of = row(matrix, model, "cpu-x86-64", "fp32")
    package.package(model, [candidate(tmp_path, of, "v1")], shared, VERSIONS, tmp_path / "dist")
    before = {path: path.read_bytes() for path in (tmp_path / "dist").rglob("*") if path.is_file()}
    failed = candidate(tmp_path, of, "v2", passed=False)
    unbuilt = {f"{model.name}__h100-pcie-80gb__fp16__tp1": "needs a worker with h100-pcie-80gb"}
    with pytest.raises(PackageError) as caught:
        package.package(model, [failed], shared, VERSIONS, tmp_path / "dist", unbuilt=unbuilt)
    assert "cosine 0.88 is below 0.98" in str(caught.value)
    assert "needs a worker with h100-pcie-80gb" in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "dist").rglob("*") if path.is_file()} == before


def test_a_new_package_leaves_nothing_of_the_old_one(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    of = row(matrix, model, "cpu-x86-64", "fp32")
    package.package(model, [candidate(tmp_path, of, "v1")], shared, VERSIONS, tmp_path / "dist")
    made = package.package(model, [candidate(tmp_path, of, "v2")], shared, VERSIONS, tmp_path / "dist")
    held = {path.name for path in (tmp_path / "dist" / package.ROOT / "blobs/blake3").iterdir()}
    assert held == {f.checksum.removeprefix("blake3:") for p in made.manifest.profiles for f in p.files}


def test_a_crash_while_writing_leaves_the_old_manifest_with_all_its_files(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = row(matrix, model, "cpu-x86-64", "fp32")
    package.package(model, [candidate(tmp_path, of, "v1")], shared, VERSIONS, tmp_path / "dist")
    root = tmp_path / "dist" / package.ROOT
    old = (root / package.MANIFEST).read_bytes()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "write_atomically", crash)
    with pytest.raises(KeyboardInterrupt):
        package.package(model, [candidate(tmp_path, of, "v2")], shared, VERSIONS, tmp_path / "dist")
    assert (root / package.MANIFEST).read_bytes() == old
    for profile in manifest.read(root / package.MANIFEST).profiles:
        assert all((root / file.uri).is_file() for file in profile.files)


def test_a_blob_that_was_touched_in_dist_is_put_there_anew(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    of = row(matrix, model, "cpu-x86-64", "fp32")
    made = package.package(model, [candidate(tmp_path, of, "good")], shared, VERSIONS, tmp_path / "dist")
    blob = tmp_path / "dist" / package.ROOT / made.manifest.profiles[0].file("engine.onnx").uri
    blob.write_text("evil")
    package.package(model, [candidate(tmp_path, of, "good")], shared, VERSIONS, tmp_path / "dist")
    assert blob.read_text() == "good"


def test_the_same_inputs_give_the_same_bytes_in_two_folders(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    rows = [row(matrix, model, "cpu-x86-64", "fp32"), row(matrix, model, "l40s", "fp8")]
    judged = [candidate(tmp_path, r, r.name) for r in rows]
    for folder, order in (("one", judged), ("two", judged[::-1])):
        package.package(model, order, shared, VERSIONS, tmp_path / folder)
    first = {p.relative_to(tmp_path / "one"): p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file()}
    second = {p.relative_to(tmp_path / "two"): p.read_bytes() for p in (tmp_path / "two").rglob("*") if p.is_file()}
    assert first == second


def test_a_model_without_a_generic_profile_ships_with_a_warning(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    only_gpu = candidate(tmp_path, row(matrix, model, "l40s", "fp16"), "plan")
    made = package.package(model, [only_gpu], shared, VERSIONS, tmp_path / "dist")
    assert any("CPU SKU whose compiler is onnx" in warning for warning in made.warnings)


def test_the_threshold_of_the_boot_proof_is_the_verdicts(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    judged = candidate(tmp_path, row(matrix, model, "cpu-x86-64", "fp32"), "x", proof_min_cosine=0.9975)
    package.package(model, [judged], shared, VERSIONS, tmp_path / "dist")
    (profile,) = manifest.read(tmp_path / "dist/model_manifest.yaml").profiles
    assert profile.proof_min_cosine == 0.9975


def test_files_in_dist_can_be_read_by_any_user(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    of = replace(row(matrix, model, "cpu-x86-64", "fp32"))
    package.package(model, [candidate(tmp_path, of, "x")], shared, VERSIONS, tmp_path / "dist")
    for path in (tmp_path / "dist").rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & stat.S_IROTH


def test_a_file_that_is_changed_in_dist_leaves_the_engine_it_came_from_alone(
    tmp_path: Path, matrix: Matrix, model: Model, shared: dict[str, Path]
) -> None:
    judged = candidate(tmp_path, row(matrix, model, "cpu-x86-64", "fp32"), "judged")
    made = package.package(model, [judged], shared, VERSIONS, tmp_path / "dist")
    (tmp_path / "dist" / package.ROOT / made.manifest.profiles[0].file("engine.onnx").uri).write_text("flipped")
    assert judged.engines[ONLY].read_text() == "judged"
