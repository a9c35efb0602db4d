"""Publishing to a registry: Debian's docker-registry, really started; what an engine pulls and a slim image fetches."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import OvertakenError, PublishError
from pipelines.image import build
from pipelines.inspect import resolve
from pipelines.publish.dispatch import publish
from pipelines.publish.to_registry import REFERRER_TYPE
from pipelines.release import oci_artifact
from pipelines.remote.address import parse
from pipelines.remote.registry import INDEX_TYPE, Registry
from serving.cache.fetch import ensure
from serving.cache.places import Places
from serving.cache.sources.oci import MANIFEST_TYPES
from serving.contract import manifest
from tests.support import servers
from tests.support.published import command, packaged, run
from tests.support.registries import imaged
from tests.support.s3_proxy import in_front_of


@pytest.fixture
def repository(request: pytest.FixtureRequest, registry_host: str) -> str:
    return f"oci://{registry_host}/team/{abs(hash(request.node.nodeid)):x}"


def got(repository: str, path: str) -> Any:
    host, _, name = repository.removeprefix("oci://").partition("/")
    asked = urllib.request.Request(
        f"http://{host}/v2/{name}{path}",
        headers={"Accept": f"{', '.join(MANIFEST_TYPES)}, {INDEX_TYPE}"},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)


def tags(repository: str) -> set[str]:
    return set(got(repository, "/tags/list")["tags"])


def pulled(repository: str, folder: Path, into: Path) -> int:
    """How many files a slim image gets from there, by the server's own downloader."""
    profiles = manifest.read(folder / "model_manifest.yaml").profiles
    places = Places(root=into / "nothing", cache_path=into / "cache", repository=repository)
    return len(ensure(profiles, places, lambda _: None))


def test_a_release_is_an_artifact_its_images_and_what_tells_of_them(
    repository: str, containers: Path, tmp_path: Path
) -> None:
    folder = imaged(tmp_path, containers)
    done = run("publish", folder, "--to", f"{repository}:1.0.0", environ={})
    assert done.returncode == 0, done.stderr
    assert f"{repository}:1.0.0\n  now current" in done.stdout
    assert pulled(f"{repository}:1.0.0", folder, tmp_path) == 6
    listed = {(one["runtime"], one["kind"]): one["digest"] for one in json.loads((folder / "images.json").read_text())}
    for kind, tag in (("full", "1.0.0-cpu"), ("slim", "1.0.0-cpu-slim")):
        assert Registry(parse(repository)).digest_of(tag) == listed["cpu", kind]
    titles = {layer["annotations"][oci_artifact.TITLE] for layer in got(repository, "/manifests/1.0.0")["layers"]}
    assert {"model_manifest.yaml", "release.json"} < titles


def test_what_tells_of_an_image_is_found_from_its_digest_in_a_registry_without_the_referrers_api(
    repository: str, containers: Path, tmp_path: Path
) -> None:
    folder = imaged(tmp_path, containers)
    publish(folder, f"{repository}:1.0.0")
    publish(folder, f"{repository}:again")
    registry = Registry(parse(repository))
    digest = registry.digest_of("1.0.0-cpu")
    assert digest is not None
    (found,) = registry.referrers(digest, REFERRER_TYPE)
    beside = json.loads(registry.manifest(found["digest"]) or b"")
    assert beside["subject"]["digest"] == digest
    assert [layer["annotations"][oci_artifact.TITLE] for layer in beside["layers"]] == [
        "model_manifest.yaml",
        "release.json",
    ]
    assert f"sha256-{digest.removeprefix('sha256:')}" in tags(repository)


def test_an_image_shows_the_documents_that_were_published_last(
    repository: str, containers: Path, tmp_path: Path
) -> None:
    """Measured again, an engine has other figures and the image the same digest."""
    first, second = imaged(tmp_path / "1", containers), imaged(tmp_path / "2", containers)
    summary = second / "package.json"
    summary.write_text(summary.read_text().replace("0.999", "0.9985"))
    for folder in (first, second, first):
        publish(folder, f"{repository}:1.0.0", replace=True)
        image = resolve.read(f"{repository}:1.0.0-cpu").release
        assert image.digest == resolve.read(str(folder)).release.digest


def test_what_others_attached_to_an_image_stays(repository: str, containers: Path, tmp_path: Path) -> None:
    """A signature, by another tool, on the same fallback tag."""
    folder = imaged(tmp_path, containers)
    (full, _) = json.loads((folder / "images.json").read_text())
    registry = Registry(parse(repository))
    registry.push_blob(oci_artifact.oci.blob_of(b"{}"), b"{}")
    theirs = {"mediaType": oci_artifact.oci.MANIFEST_TYPE, "digest": "", "size": 0, "artifactType": "a/signature"}
    empty = oci_artifact.oci.descriptor(oci_artifact.EMPTY_TYPE, oci_artifact.oci.blob_of(b"{}"))
    signature = json.dumps(
        {"schemaVersion": 2, "mediaType": oci_artifact.oci.MANIFEST_TYPE, "config": empty, "layers": [empty]}
    ).encode()
    theirs |= {"digest": oci_artifact.oci.blob_of(signature).digest, "size": len(signature)}
    registry.push_manifest(theirs["digest"], signature)
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [theirs]}
    registry.push_manifest(full["digest"].replace(":", "-"), json.dumps(index).encode())
    publish(folder, f"{repository}:1.0.0")
    assert [one["digest"] for one in registry.referrers(full["digest"], "a/signature")] == [theirs["digest"]]
    assert len(registry.referrers(full["digest"], REFERRER_TYPE)) == 1


def test_a_second_publication_sends_nothing(
    registry_host: str, repository: str, containers: Path, tmp_path: Path
) -> None:
    folder = imaged(tmp_path, containers)
    publish(folder, f"{repository}:1.0.0")
    with in_front_of(f"http://{registry_host}") as proxy:
        again = publish(folder, repository.replace(registry_host, proxy.target_name) + ":1.0.0")
        blobs = [line for line in proxy.writes if "/blobs/" in line]
        moved = [line for line in proxy.writes if line.endswith(("1.0.0", "1.0.0-cpu", "1.0.0-cpu-slim"))]
    assert (again.uploaded, again.moved, blobs, moved) == (0, False, [], [])


def test_a_model_without_images_is_published_too(repository: str, tmp_path: Path) -> None:
    folder = packaged(tmp_path)
    publish(folder, repository)  # the tag is the release
    assert tags(repository) == {"1.0.0"}
    assert pulled(f"{repository}:1.0.0", folder, tmp_path) == 6


def test_a_tag_of_another_release_stays_unless_it_is_to_be_replaced(repository: str, tmp_path: Path) -> None:
    first, second = packaged(tmp_path / "1"), packaged(tmp_path / "2", {"8.9-fp8": b"other"})
    publish(first, f"{repository}:1.0.0")
    with pytest.raises(PublishError, match=r"another release .*raise `release` in the matrix"):
        publish(second, f"{repository}:1.0.0")
    assert pulled(f"{repository}:1.0.0", first, tmp_path / "a") == 6
    publish(second, f"{repository}:1.0.0", replace=True)
    assert pulled(f"{repository}:1.0.0", second, tmp_path / "b") == 6


def test_images_of_an_earlier_manifest_are_not_published(repository: str, containers: Path, tmp_path: Path) -> None:
    folder = imaged(tmp_path / "1", containers)
    changed = packaged(tmp_path / "2", {"cpu-x86-64-fp32": b"other"})
    shutil.copy(folder / "images.json", changed)
    with pytest.raises(PublishError, match="built of an earlier manifest; build the images again"):
        publish(changed, f"{repository}:1.0.0")


def test_a_damaged_layer_is_refused_by_the_registry_and_no_tag_moves(
    repository: str, containers: Path, tmp_path: Path
) -> None:
    folder = imaged(tmp_path, containers)
    (full, _) = json.loads((folder / "images.json").read_text())
    path = folder / build.LAYOUT / oci_artifact.oci.blob_path(full["layers"][0]["digest"])
    data = path.read_bytes()
    path.unlink()  # a link to the store's file
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(PublishError, match=r"nothing was published:\n.*400.*DIGEST_INVALID"):
        publish(folder, f"{repository}:1.0.0")
    registry = Registry(parse(repository))
    assert registry.digest_of("1.0.0") is None
    assert registry.digest_of("1.0.0-cpu") is None


def test_of_two_publishers_at_once_one_is_refused(registry_host: str, repository: str, tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def wait_for_the_other(_: int, line: str) -> None:
        if line.startswith("PUT") and line.endswith("/manifests/nightly"):
            both.wait(60)

    with in_front_of(f"http://{registry_host}") as proxy:
        proxy.before = wait_for_the_other
        place = repository.replace(registry_host, proxy.target_name) + ":nightly"
        folders = [packaged(tmp_path / name, {"8.9-fp8": name.encode()}, release=name) for name in ("1.1.0", "1.2.0")]
        racing = [command("publish", folder, "--to", place, environ={}) for folder in folders]
        ended = [(each.communicate(timeout=120)[1], each.returncode) for each in racing]
    codes = [code for _, code in ended]
    winner = Registry(parse(repository)).digest_of("nightly")
    assert winner in {oci_artifact.oci.blob_of(oci_artifact.contents(folder).manifest).digest for folder in folders}
    # Without conditional writes the loser may have looked before it lost; never may both be refused, or the winner be.
    assert codes in ([0, 20], [20, 0], [0, 0]), ended
    if 20 in codes:
        lost = codes.index(20)
        assert oci_artifact.oci.blob_of(oci_artifact.contents(folders[lost]).manifest).digest != winner


def test_a_tag_that_moved_while_blobs_were_sent_is_not_overwritten(
    registry_host: str, repository: str, tmp_path: Path
) -> None:
    first, second = packaged(tmp_path / "1"), packaged(tmp_path / "2", {"8.9-fp8": b"other"}, release="1.0.1")
    with in_front_of(f"http://{registry_host}") as proxy:

        def someone_else(_: int, line: str) -> None:
            if line.startswith("PUT") and "/manifests/sha256:" in line:
                proxy.before = lambda *_: None
                publish(second, f"{repository}:nightly")

        proxy.before = someone_else
        with pytest.raises(OvertakenError, match="somebody else published meanwhile"):
            publish(first, repository.replace(registry_host, proxy.target_name) + ":nightly")
    assert pulled(f"{repository}:nightly", second, tmp_path) == 6


@pytest.mark.slow
def test_readers_see_a_whole_release_wherever_the_publisher_is_killed(
    registry_host: str, repository: str, containers: Path, tmp_path: Path
) -> None:
    old = imaged(tmp_path / "old", containers)
    new = imaged(tmp_path / "new", containers, {"8.9-fp8": b"other", "cpu-x86-64-fp32": b"new"}, release="2.0.0")
    expected = {
        oci_artifact.oci.blob_of(oci_artifact.contents(folder).manifest).digest: folder for folder in (old, new)
    }
    seen, number, finished = list[Path](), 0, False
    while not finished:
        number += 2
        here = f"{repository}/{number}"
        publish(old, f"{here}:stable")
        with in_front_of(f"http://{registry_host}") as proxy:

            def kill(count: int, _: str, number: int = number) -> None:
                if count == number:
                    publisher.kill()  # noqa: B023  # called before the next one is started
                    publisher.wait(30)  # noqa: B023

            place = here.replace(registry_host, proxy.target_name) + ":stable"
            proxy.after = kill
            publisher = command("publish", new, "--to", place, "--replace", environ={})
            publisher.communicate(timeout=60)
            finished = publisher.returncode == 0
        registry = Registry(parse(here))
        found = expected[registry.digest_of("stable") or ""]
        assert pulled(f"{here}:stable", found, tmp_path / f"pulled-{number}") == 6
        for tag in ("stable-cpu", "stable-cpu-slim"):  # each of them whole
            described = json.loads(registry.manifest(tag) or b"")
            for one in (described["config"], *described["layers"]):
                assert len(registry.blob(one["digest"], 1 << 30)) == one["size"]
        seen.append(found)
    assert len(seen) > 15
    assert seen[-1] == new
    assert seen == [old] * seen.count(old) + [new] * seen.count(new)


def test_a_registry_that_wants_a_login_says_so_and_takes_the_one_of_docker(
    containers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "htpasswd").write_text("me:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n")  # "secret"
    realm = {"REGISTRY_AUTH_HTPASSWD_REALM": "x", "REGISTRY_AUTH_HTPASSWD_PATH": str(tmp_path / "htpasswd")}
    login = {"REGISTRY_AUTH": "htpasswd", **realm}
    with servers.registry(tmp_path, login) as host:
        place = f"oci://{host}/team/tiny:1.0.0"
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        with pytest.raises(PublishError, match=r"401 .*docker login"):
            publish(packaged(tmp_path), place)
        (tmp_path / "docker").mkdir()
        auth = {"auth": base64.b64encode(b"me:secret").decode()}
        (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {host: auth}}))
        assert publish(tmp_path / "dist" / "tiny", place).moved


@pytest.mark.docker
@pytest.mark.slow
def test_an_engine_pulls_the_published_image_by_digest(
    registry_host: str, repository: str, containers: Path, tmp_path: Path
) -> None:
    folder = imaged(tmp_path, containers)
    publish(folder, f"{repository}:1.0.0")
    (full, _) = json.loads((folder / "images.json").read_text())
    name = f"{repository.removeprefix('oci://')}@{full['digest']}"
    done = subprocess.run(["docker", "pull", name], capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    found = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{.Id}}", name],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.strip() == full["image_id"]
    subprocess.run(["docker", "rmi", name], capture_output=True, check=True, timeout=60)
