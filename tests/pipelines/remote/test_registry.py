"""The client of a registry where requests break: what is asked again, what begins anew, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import PublishError, UnreachableError
from pipelines.image import oci
from pipelines.remote import login
from pipelines.remote.address import parse
from pipelines.remote.registry import Registry
from tests.support import servers
from tests.support.s3_proxy import in_front_of

DATA = b"engine" * 1000


def registry_of(host: str, request: pytest.FixtureRequest) -> Registry:
    return Registry(parse(f"oci://{host}/team/{abs(hash(request.node.nodeid)):x}"))


@pytest.mark.parametrize("lost", ["HEAD", "POST", "PUT"])
def test_a_lost_reply_is_asked_for_again(lost: str, registry_host: str, request: pytest.FixtureRequest) -> None:
    with in_front_of(f"http://{registry_host}") as proxy:
        lines = list[str]()

        def once(line: str) -> bool:
            lines.append(line)
            return line.startswith(lost) and sum(earlier.startswith(lost) for earlier in lines) == 1

        proxy.loses = once
        registry = registry_of(proxy.target_name, request)
        registry.push_blob(oci.blob_of(DATA), DATA)
    direct = Registry(parse(f"oci://{registry_host}/{registry.address.repository}"))
    assert direct.blob(oci.blob_of(DATA).digest, 1 << 20) == DATA


def test_an_upload_that_broke_begins_anew_with_the_whole_file(
    registry_host: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (path := tmp_path / "engine").write_bytes(DATA)
    with in_front_of(f"http://{registry_host}") as proxy:
        sessions = list[str]()

        def break_the_first(_: int, line: str) -> None:
            if line.startswith("PUT"):
                sessions.append(line)
                if len(sessions) == 1:
                    raise ConnectionResetError  # the registry never hears of it

        proxy.before = break_the_first
        registry = registry_of(proxy.target_name, request)
        assert registry.push_blob(oci.blob_of(DATA), path)
    assert len(set(sessions)) == 2
    direct = Registry(parse(f"oci://{registry_host}/{registry.address.repository}"))
    assert direct.blob(oci.blob_of(DATA).digest, 1 << 20) == DATA


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_answer_that_may_pass_is_asked_for_again(status: int) -> None:
    with servers.serve({"/v2/team/tiny/manifests/1": b"{}"}) as web:
        web.answers = [status, status, 200]
        assert Registry(parse(f"oci{web.url.removeprefix('http')}/team/tiny:1")).manifest("1") == b"{}"
        assert len(web.asked) == 3


def test_an_answer_that_never_passes_is_said_to_be_the_registrys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "RETRY", login.RETRY.new(total=1))
    with servers.serve({"/v2/team/tiny/manifests/1": b"{}"}) as web:
        web.answers = [503] * 9
        with pytest.raises(UnreachableError, match="the registry answers 503"):
            Registry(parse(f"oci{web.url.removeprefix('http')}/team/tiny:1")).manifest("1")
        assert len(web.asked) == 2


def test_a_refusal_is_said_at_once(tmp_path: Path) -> None:
    with servers.serve({"/v2/team/tiny/manifests/1": b"{}"}) as web:
        web.answers = [403] * 9
        with pytest.raises(PublishError, match=r"403 .*this login may not write there"):
            Registry(parse(f"oci{web.url.removeprefix('http')}/team/tiny:1")).manifest("1")
        assert len(web.asked) == 1


def test_a_page_in_place_of_the_list_of_referrers_is_a_message() -> None:
    digest = f"sha256:{'a' * 64}"
    with servers.serve({f"/v2/team/tiny/referrers/{digest}": b"<html>"}) as web:
        registry = Registry(parse(f"oci{web.url.removeprefix('http')}/team/tiny:1"))
        with pytest.raises(PublishError, match="no OCI index; is a proxy before the registry"):
            registry.referrers(digest, "any")


def test_what_is_attached_is_listed_with_its_type_and_its_annotations(
    registry_host: str, request: pytest.FixtureRequest
) -> None:
    registry, empty = registry_of(registry_host, request), oci.blob_of(b"{}")
    registry.push_blob(empty, b"{}")
    part = oci.descriptor("application/vnd.oci.empty.v1+json", empty)
    image = {"schemaVersion": 2, "mediaType": oci.MANIFEST_TYPE, "config": part, "layers": [part]}
    subject = oci.blob_of(content := json.dumps(image).encode())
    registry.push_manifest(subject.digest, content)
    attached = {
        **image, "artifactType": "a/note", "annotations": {"a": "b"},
        "subject": oci.descriptor(oci.MANIFEST_TYPE, subject),
    }  # fmt: skip
    digest = registry.attach(json.dumps(attached).encode(), subject.digest)
    (listed,) = registry.referrers(subject.digest, "a/note")
    assert (listed["digest"], listed["annotations"]) == (digest, {"a": "b"})
    assert registry.referrers(subject.digest, "another/type") == []
