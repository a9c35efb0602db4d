"""Models in a bucket: the revision without a download, the files of exactly that revision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ExportError, FetchError
from pipelines.export import s3_source, sources
from pipelines.matrix.models import source_refusal
from tests.support.s3_proxy import in_front_of
from tests.support.servers import s3

SOURCE = "s3://mirror/models/tiny"


@pytest.fixture
def bucket(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a bucket with the tiny model and files that are none of its."""
    import boto3

    files = {f"models/tiny/{p.relative_to(tiny_model)}": p.read_bytes() for p in tiny_model.rglob("*") if p.is_file()}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    others = {"models/tiny/pytorch_model.bin": b"pickle", "models/tiny-2/config.json": b"{}"}
    with s3(tmp_path, {**files, **others}) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield boto3.client("s3", region_name="us-east-1")


def test_the_revision_changes_with_the_models_files_and_with_nothing_else(bucket: Any) -> None:
    before = sources.revision(SOURCE, Path())
    bucket.put_object(Bucket="mirror", Key="models/tiny/README.md", Body=b"more")
    bucket.put_object(Bucket="mirror", Key="models/tiny-2/config.json", Body=b"[]")
    assert sources.revision(SOURCE, Path()) == before
    bucket.put_object(Bucket="mirror", Key="models/tiny/config_sentence_transformers.json", Body=b"{}")
    assert sources.revision(SOURCE, Path()) != before
    assert not s3_source.cache().exists()


def test_the_fetched_folder_is_the_model_without_what_is_never_read(bucket: Any, tiny_model: Path) -> None:
    folder = sources.resolve(SOURCE, Path(), sources.revision(SOURCE, Path()))
    assert sources.digest(folder) == sources.digest(tiny_model)
    assert not (folder / "pytorch_model.bin").exists()
    assert sources.resolve(SOURCE, Path()) == folder
    assert [path.name for path in s3_source.cache().iterdir()] == [folder.name]


def test_a_bucket_that_changed_since_the_plan_is_refused_for_now(bucket: Any) -> None:
    planned = sources.revision(SOURCE, Path())
    bucket.put_object(Bucket="mirror", Key="models/tiny/vocab.txt", Body=b"other")
    with pytest.raises(FetchError, match="when the build was planned") as refused:
        sources.resolve(SOURCE, Path(), planned)
    assert refused.value.transient


def test_a_key_that_leads_out_of_the_folder_is_refused(bucket: Any) -> None:
    bucket.put_object(Bucket="mirror", Key="models/tiny/../../evil.json", Body=b"{}")
    with pytest.raises(ExportError, match="outside the model's folder"):
        sources.resolve(SOURCE, Path())


def test_nothing_there_and_nobody_there_are_told_apart(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="has no model files there"):
        sources.revision("s3://mirror/models/none", Path())
    with pytest.raises(FetchError, match="could not be read from the bucket"):
        sources.revision("s3://no-such-bucket/models/none", Path())


def test_a_download_that_breaks_off_is_a_failure_that_may_pass_and_leaves_nothing(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_front_of(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.cut = lambda line: line.startswith("GET") and "model.safetensors" in line
        with pytest.raises(FetchError, match=r"could not be read from the bucket .*try again") as broken:
            sources.resolve(SOURCE, Path())
    assert broken.value.transient
    assert list(s3_source.cache().iterdir()) == []


def test_a_listing_that_breaks_off_is_a_failure_that_may_pass(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_front_of(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        proxy.loses = lambda line: "list-type" in line
        with pytest.raises(FetchError, match="could not be read from the bucket"):
            sources.revision(SOURCE, Path())


@pytest.mark.parametrize("source", ["s3://bucket", "s3://Bucket/x", "s3:///x", "s3://bucket/a b"])
def test_the_matrix_refuses_what_is_no_bucket_and_prefix(source: str) -> None:
    assert "is not s3://bucket/prefix" in str(source_refusal(source, Path()))
    assert source_refusal(SOURCE, Path()) is None
