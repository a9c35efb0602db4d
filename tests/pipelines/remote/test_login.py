"""Logging in to a registry: real tokens of a docker-registry that checks them, and token servers that fail."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import PublishError, UnreachableError
from pipelines.image import oci
from pipelines.remote import login
from pipelines.remote.address import parse
from pipelines.remote.registry import Registry
from tests.support import servers
from tests.support.s3_proxy import in_front_of
from tests.support.token_server import Tokens, registry_settings, token_server

BLOB = b"{}"


@pytest.fixture(autouse=True)
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that `docker login` writes; not there yet."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr(login, "RETRY", login.RETRY.new(total=1))
    return tmp_path / "docker" / "config.json"


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    with token_server(tmp_path) as running:
        yield running


@pytest.fixture
def host(tokens: Tokens, tmp_path: Path) -> Iterator[str]:
    with servers.registry(tmp_path, registry_settings(tokens)) as running:
        yield running


def repository(host: str, token: str | None = None) -> Registry:
    return Registry(parse(f"oci://{host}/team/tiny:1"), token=token)


def test_reading_asks_for_reading_alone_and_writing_for_both(tokens: Tokens, host: str) -> None:
    tokens.granted = frozenset({"pull"})
    assert repository(host).digest_of("1") is None
    assert tokens.scopes == ["repository:team/tiny:pull"]
    tokens.granted = frozenset({"pull", "push"})
    assert repository(host).push_blob(oci.blob_of(BLOB), BLOB)
    assert tokens.scopes[1:] == ["repository:team/tiny:pull", "repository:team/tiny:pull,push"]


def test_one_token_serves_many_requests(tokens: Tokens, host: str) -> None:
    registry = repository(host)
    for data in (b"1", b"2", b"3"):
        registry.push_blob(oci.blob_of(data), data)
    assert len(tokens.scopes) == 2


def test_a_file_is_sent_whole_though_its_first_request_was_refused(tokens: Tokens, host: str, tmp_path: Path) -> None:
    (path := tmp_path / "blob").write_bytes(data := b"x" * 100_000)
    registry = repository(host)
    with path.open("rb") as file:
        begun = registry._send("POST", "/blobs/uploads/", {}, b"")
        registry._uploads.auth._headers.clear()  # type: ignore[union-attr]  # as if the token were over
        target = f"{begun.headers['Location']}&digest={oci.blob_of(data).digest}"
        registry._send("PUT", target, {"Content-Length": str(len(data))}, file, session=registry._uploads)
    assert registry.blob(oci.blob_of(data).digest, 1 << 20) == data


def test_dockers_login_is_what_the_token_server_is_told(tokens: Tokens, host: str, docker_config: Path) -> None:
    auth = base64.b64encode(b"me:secret").decode()
    docker_config.parent.mkdir()
    docker_config.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    assert repository(host).digest_of("1") is None
    assert tokens.logins == [f"Basic {auth}"]


def test_a_bearer_token_of_ones_own_is_used_as_it_is_and_its_refusal_has_a_remedy(tokens: Tokens, host: str) -> None:
    with pytest.raises(PublishError, match=r"401 .*docker login, or ENGINERY_REPOSITORY_TOKEN"):
        repository(host, token="of another registry").digest_of("1")
    assert tokens.scopes == []


def test_a_token_server_that_is_down_is_named_and_may_come_back(tmp_path: Path, tokens: Tokens) -> None:
    tokens.url = f"http://127.0.0.1:{servers.free_port()}/token"
    with (
        servers.registry(tmp_path, registry_settings(tokens)) as host,
        pytest.raises(UnreachableError, match=f"^{tokens.url}: .*look at the address"),
    ):
        repository(host).digest_of("1")


@pytest.mark.parametrize("body", [b"<html>Sign in</html>", b"[]", b'{"expires_in": 300}'])
def test_an_answer_that_is_no_token_is_a_message(body: bytes, tokens: Tokens, host: str) -> None:
    tokens.body = body
    with pytest.raises(PublishError, match="gives no token that can be read; is it the token server of"):
        repository(host).digest_of("1")


def test_a_token_that_grants_nothing_ends_in_the_registrys_own_words(tokens: Tokens, host: str) -> None:
    tokens.granted = frozenset()
    with pytest.raises(PublishError, match=r"401 Unauthorized; .*log in"):
        repository(host).push_blob(oci.blob_of(BLOB), BLOB)


def test_the_login_stays_with_its_registry(tokens: Tokens, host: str) -> None:
    """Where an upload is sent to another host, no token goes along."""
    with servers.serve({}) as elsewhere, in_front_of(f"http://{host}") as proxy:
        registry = repository(proxy.target_name)
        registry.push_blob(oci.blob_of(BLOB), BLOB)
        with pytest.raises(PublishError):
            registry._send("GET", f"{elsewhere.url}/upload", {}, None)
    assert [headers.get("Authorization") for headers in elsewhere.headers] == [None]
