"""package.json: a package that is still there is not packaged again, and whoever read the file before reads it now."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import PackageError
from pipelines.image import package, package_file
from pipelines.image.package import Candidate
from pipelines.image.package_file import Packaged, ensure_packaged
from pipelines.matrix.load import load
from pipelines.matrix.values import Row
from serving.contract.profile import Precision
from serving.tasks.base import ONLY
from tests.support.published import MATRIX, VERSIONS
from tests.support.verdicts import verdict


def packaged(folder: Path, engine: bytes = b"an engine", release: str = "1.0.0") -> tuple[Packaged, bool]:
    matrix = load(MATRIX)
    model = replace(next(iter(matrix.models.values())), name="tiny", release=release)
    row = Row(model=model, sku=matrix.skus["l40s"], precision=Precision.FP16, tp=1)
    for name in package.SHARED:
        (folder / name).write_text(name)
    (folder / "engine").write_bytes(engine)
    candidate = Candidate(
        row=row, engines={ONLY: folder / "engine"}, verdict=verdict(row.name, folder / "engine"), version="1.7"
    )
    return ensure_packaged(
        model,
        [candidate],
        {name: folder / name for name in package.SHARED},
        folder=folder / "dist",
        versions=VERSIONS,
        skus=matrix.skus,
        unbuilt={},
    )


def test_what_is_packaged_already_is_not_packaged_again(tmp_path: Path) -> None:
    first, reused = packaged(tmp_path)
    assert not reused
    assert packaged(tmp_path) == (first, True)


@pytest.mark.parametrize("changed", [{"engine": b"another"}, {"release": "1.0.1"}])
def test_another_engine_or_release_is_packaged(tmp_path: Path, changed: dict[str, object]) -> None:
    first, _ = packaged(tmp_path)
    second, reused = packaged(tmp_path, **changed)  # type: ignore[arg-type]
    assert not reused
    assert second.manifest_digest != first.manifest_digest


def test_a_package_that_lost_a_file_is_packaged_again(tmp_path: Path) -> None:
    first, _ = packaged(tmp_path)
    lost = tmp_path / "dist" / package.ROOT / next(iter(first.files))
    lost.unlink()
    assert packaged(tmp_path) == (first, False)
    assert lost.is_file()


def test_the_file_holds_each_verdict_as_verdict_json_has_it(tmp_path: Path) -> None:
    packaged(tmp_path)
    content = json.loads((tmp_path / "dist" / "package.json").read_bytes())
    (judged,) = content["verdicts"].values()
    assert judged["judged_on"] == "typed-onnx"
    assert judged["reasons"] == []
    assert content["skus"]["l40s"]["compute_capability"] == "8.9"


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    packaged(tmp_path)
    (tmp_path / "dist" / "package.json").write_text("{")
    with pytest.raises(PackageError, match=r"package\.json is not readable .*remove it and run the build again"):
        package_file.load(tmp_path / "dist")
