"""Buckets for tests of publication: two real S3 servers, and a reader that trusts nothing and hashes every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import boto3
import pytest
from blake3 import blake3

from pipelines.remote.bucket import PART_BYTES
from serving.contract import manifest
from tests.support import servers
from tests.support import swift as swifts

LARGE = b"large" * (PART_BYTES // 5 + 1000)  # two parts


@pytest.fixture(scope="module")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.s3(tmp_path_factory.mktemp("moto"), {}) as url:
        yield url


@pytest.fixture(scope="module")
def swift_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with swifts.swift(tmp_path_factory.mktemp("swift")) as url:
        client(url, swifts.KEYS).create_bucket(Bucket="mirror")
        yield url


def client(url: str, keys: Mapping[str, str]) -> Any:
    names = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    login = {argument: keys[name] for argument, name in names.items()}
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", **login)


def current(url: str, keys: Mapping[str, str], place: str, model: str = "tiny") -> str:
    """The version that a reader sees, after it has hashed every byte that the release names; trusts nothing."""
    s3, prefix = client(url, keys), place.removeprefix("s3://mirror/")

    def get(key: str) -> bytes:
        return bytes(s3.get_object(Bucket="mirror", Key=f"{prefix}/{key}")["Body"].read())

    entry = json.loads(get(f"models/{model}/latest.json"))["releases"][0]
    document = get(f"blobs/{entry['digest'].replace(':', '/')}")
    assert "sha256:" + hashlib.sha256(document).hexdigest() == entry["digest"]
    listed = get(f"blobs/{json.loads(document)['manifest'].replace(':', '/')}")
    assert "sha256:" + hashlib.sha256(listed).hexdigest() == json.loads(document)["manifest"]
    for file in {f.uri: f for p in manifest.load(listed).profiles for f in p.files}.values():
        assert f"blake3:{blake3(get(file.uri)).hexdigest()}" == file.checksum
    return str(entry["release"])
