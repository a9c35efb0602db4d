"""Each source against a real server of its kind: what it reads, where it goes on, what it refuses and keeps secret."""

from __future__ import annotations

import json
import random
import ssl
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from serving.cache import local
from serving.cache.download import Patience
from serving.cache.fetch import fetch
from serving.cache.places import Places
from serving.cache.sources import Sources
from serving.cache.sources.base import Location, Source, SourceError, Transient, opened
from serving.cache.sources.oci import docker_logins
from serving.contract.profile import Profile, ProfileFile
from serving.errors import CacheError
from tests.support.servers import (
    KEYS,
    Web,
    certificate,
    free_port,
    push_files,
    push_layout,
    push_manifest,
    registry,
    s3,
    serve,
)

DATA = random.Random(0).randbytes(1_500_000)
URI = f"blobs/blake3/{blake3(DATA).hexdigest()}"
FILE = ProfileFile(path="engine.onnx", uri=URI, checksum=f"blake3:{blake3(DATA).hexdigest()}", size_bytes=len(DATA))
PROFILE = Profile(id="a" * 64, name="mini", tags={}, files=(FILE,), proof_min_cosine=0.98)
HASTY = Patience(attempts=2, first_delay_s=0.0)


def at(base: str, uri: str = URI) -> Location:
    return Location(uri=f"{base}/{uri}", within=base)


def source(base: str, **more: str) -> Source:
    return Sources(**more).of(at(base))  # type: ignore[arg-type]


def content(found: Source, location: Location, offset: int = 0, version: str = "") -> tuple[int, bytes]:
    """(the offset at which the source began, what it sent)."""
    data = b""
    with opened(found, location, offset, version) as stream:
        while chunk := stream.read(1 << 16):
            data += chunk
        return stream.offset, data


def places(base: str, folder: Path, token: str | None = None) -> Places:
    return Places(root=folder / "root", cache_path=folder / "cache", repository=base, patience=HASTY, token=token)


def refused(base: str, folder: Path) -> str:
    with pytest.raises(CacheError) as caught:
        fetch(PROFILE, places(base, folder))
    return str(caught.value)


# HTTP


@pytest.fixture
def web() -> Iterator[Web]:
    with serve({f"/{URI}": DATA}) as found:
        yield found


def test_http_gives_the_rest_of_a_file_of_the_same_version_and_else_all_of_it(web: Web) -> None:
    found, location = source(web.url), at(web.url)
    with opened(found, location, 0, "") as stream:
        assert stream.size_bytes == len(DATA)
        version = stream.version
    assert content(found, location, 1000, version) == (1000, DATA[1000:])
    assert content(found, location, 1000) == (1000, DATA[1000:])
    assert content(found, location, 1000, '"another"') == (0, DATA)
    assert content(found, location, len(DATA)) == (0, DATA)
    web.ranges = False
    assert content(found, location, 1000) == (0, DATA)


def test_http_asks_for_the_bytes_as_they_are(web: Web) -> None:
    content(source(web.url), at(web.url))
    assert web.headers[0]["Accept-Encoding"] == "identity"


def test_a_token_goes_to_the_repository_and_not_to_where_it_redirects(web: Web) -> None:
    with serve({}) as front:
        front.redirects = {f"/{URI}": f"{web.url}/{URI}"}
        assert content(source(front.url, token="secret"), at(front.url), 10) == (10, DATA[10:])
        assert front.headers[0]["Authorization"] == "Bearer secret"
        assert "Authorization" not in web.headers[0]
        assert web.headers[0]["Range"] == "bytes=10-"


def test_a_token_is_not_sent_to_an_address_that_the_manifest_names_itself(web: Web) -> None:
    content(source(web.url, token="secret"), Location(uri=f"{web.url}/{URI}"))
    assert "Authorization" not in web.headers[0]


def test_a_token_is_not_sent_in_the_clear() -> None:
    base = "http://repository.invalid"
    with pytest.raises(SourceError, match=r"not sent over plain http://"):
        content(source(base, token="secret"), at(base))


def test_a_circle_of_redirects_and_one_to_another_protocol_are_refused(web: Web) -> None:
    web.redirects = {f"/{URI}": f"/{URI}", "/file": "file:///etc/passwd", "/ftp": "ftp://localhost/x"}
    with pytest.raises(SourceError, match="302"):
        content(source(web.url), at(web.url))
    for path in ("file", "ftp"):
        with pytest.raises(SourceError):
            content(source(web.url), at(web.url, path))


def test_a_server_that_is_not_there_may_come_back(web: Web) -> None:
    for base in (f"http://localhost:{free_port()}", "http://nobody.invalid"):
        with pytest.raises(Transient):
            content(source(base), at(base))


def test_tls_is_trusted_by_its_authority_alone_and_not_left_for_the_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: Web
) -> None:
    trusted, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, key)
    with serve({f"/{URI}": DATA}, context) as secure:
        message = refused(secure.url, tmp_path)
        assert "certificate is not trusted" in message
        assert "set SSL_CERT_FILE" in message
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        assert fetch(PROFILE, places(secure.url, tmp_path)) == {"engine.onnx": DATA}
        secure.redirects = {f"/{URI}": f"{web.url}/{URI}"}
        with pytest.raises(SourceError, match="redirects from https:// to http://"):
            content(source(secure.url), at(secure.url))
        plain = web.url.replace("http:", "https:")
        with pytest.raises(SourceError, match="does not speak TLS"):
            content(source(plain), at(plain))


def test_a_proxy_of_the_environment_is_used_and_no_proxy_is_heeded(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    base = "http://repository.invalid"
    monkeypatch.setenv("http_proxy", web.url)
    web.files[f"{base}/{URI}"] = DATA  # a proxy is asked for whole addresses
    assert content(source(base), at(base)) == (0, DATA)
    monkeypatch.setenv("no_proxy", "repository.invalid")
    with pytest.raises(Transient):
        content(source(base), at(base))


# S3


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3(tmp_path_factory.mktemp("s3"), {f"models/{URI}": DATA}) as url:
        yield url


@pytest.fixture
def keys(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": bucket, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)


S3 = "s3://mirror/models"


@pytest.mark.usefixtures("keys")
def test_s3_fills_a_cache(tmp_path: Path) -> None:
    assert fetch(PROFILE, places(S3, tmp_path)) == {"engine.onnx": DATA}
    assert local.blob(tmp_path / "cache", FILE).read_bytes() == DATA


@pytest.mark.usefixtures("keys")
def test_s3_gives_the_rest_of_an_object_of_the_same_version_and_else_all_of_it() -> None:
    found, location = source(S3), at(S3)
    with opened(found, location, 0, "") as stream:
        assert stream.size_bytes == len(DATA)
        version = stream.version
    assert content(found, location, 1000, version) == (1000, DATA[1000:])
    assert content(found, location, 1000, '"another"') == (0, DATA)
    assert content(found, location, len(DATA)) == (0, DATA)


@pytest.mark.usefixtures("keys")
def test_s3_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "NoSuchKey" in refused("s3://mirror/elsewhere", tmp_path)
    assert "NoSuchBucket" in refused("s3://nothing", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert "given up after 2 attempts" in refused(S3, tmp_path)


@pytest.mark.usefixtures("keys")
def test_s3_without_keys_reads_what_is_public(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import boto3

    boto3.client("s3").put_object(Bucket="mirror", Key=f"public/{URI}", Body=DATA, ACL="public-read")
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert "answers 403" in refused(S3, tmp_path)
    assert fetch(PROFILE, places("s3://mirror/public", tmp_path)) == {"engine.onnx": DATA}


def test_boto3_is_imported_for_s3_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from serving.cache.fetch import fetch; from pathlib import Path\n"
        "from serving.cache.places import Places\n"
        "from serving.contract.profile import Profile, ProfileFile\n"
        f"path = Path({str(tmp_path)!r}); fetch({PROFILE!r}, Places(root=path))\n"
        "print(sorted({n.partition('.')[0] for n in sys.modules} & {'boto3', 'botocore', 'urllib3', 'requests'}))"
    )
    (tmp_path / URI).parent.mkdir(parents=True)
    (tmp_path / URI).write_bytes(DATA)
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# OCI registries


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry(tmp_path_factory.mktemp("registry")) as found:
        push_files({URI: DATA, "README.md": b"read me"}, found, "team/mini", "1.0.0")
        yield found


def test_a_registry_fills_a_cache_by_tag_and_by_digest(host: str, tmp_path: Path) -> None:
    digest = push_files({URI: DATA}, host, "team/mini", "by-digest")
    for number, reference in enumerate((":1.0.0", f"@{digest}")):
        folder = tmp_path / str(number)
        assert fetch(PROFILE, places(f"oci://{host}/team/mini{reference}", folder)) == {"engine.onnx": DATA}


def test_a_registry_gives_the_rest_of_a_blob(host: str) -> None:
    base = f"oci+http://{host}/team/mini:1.0.0"
    found = source(base)
    assert content(found, at(base), 1000) == (1000, DATA[1000:])
    assert content(found, at(base), len(DATA)) == (0, DATA)


def test_a_file_that_an_artifact_does_not_list_is_refused(host: str, tmp_path: Path) -> None:
    push_files({"other": b"x"}, host, "team/mini", "other")
    assert "lists 1 files, none with the title" in refused(f"oci://{host}/team/mini:other", tmp_path)
    assert "404" in refused(f"oci://{host}/team/mini:nothing", tmp_path)


@pytest.mark.parametrize("base", ["oci://host", "oci://host/repo", "oci://host/Repo:1", "oci://host/repo@sha256:12"])
def test_an_address_without_its_tag_says_how_it_is_written(base: str, tmp_path: Path) -> None:
    assert "is not oci://HOST/REPOSITORY:TAG/FILE" in refused(base, tmp_path)


def test_a_registry_that_sends_another_manifest_than_was_asked_for_is_refused(tmp_path: Path) -> None:
    digest = "sha256:" + "0" * 64
    with serve({f"/v2/mini/manifests/{digest}": b'{"layers": []}'}) as web:
        base = f"oci://{web.url.removeprefix('http://')}/mini@{digest}"
        assert "not to the digest that it was asked for by" in refused(base, tmp_path)


def test_a_registry_that_sends_other_bytes_is_refused(host: str, tmp_path: Path) -> None:
    push_files({URI: DATA[:-1] + b"?"}, host, "team/mini", "wrong")
    assert "hashes to blake3:" in refused(f"oci://{host}/team/mini:wrong", tmp_path)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_no_artifact_is_a_reason(host: str, tmp_path: Path) -> None:
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
    push_manifest(host, "team/mini", "index", json.dumps(index).encode())
    message = refused(f"oci://{host}/team/mini:index", tmp_path)
    assert "404" in message or "no manifest of an OCI artifact" in message


def test_plain_http_is_spoken_with_this_machine_or_where_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Transient, match="cannot be resolved"):
        content(source("oci+http://nobody.invalid/x:1"), at("oci+http://nobody.invalid/x:1"))
    with serve({}) as web:  # TLS is tried at a name that is not this machine's
        base = web.url.replace("http://localhost", "oci://127.1") + "/x:1"
        assert "does not speak TLS" in refused(base, tmp_path)


@pytest.mark.parametrize("login", ["", "ada:lovelace"])
def test_a_registry_is_given_the_token_that_it_asks_for(
    login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "sha256:" + "1" * 64
    layer = {"digest": digest, "annotations": {"org.opencontainers.image.title": URI}}
    files = {
        "/v2/mini/manifests/1": json.dumps({"layers": [layer]}).encode(),
        f"/v2/mini/blobs/{digest}": DATA,
    }
    with serve({}) as realm, serve(files) as web:
        realm.files["/token?service=here&scope=repository%3Amini%3Apull"] = b'{"token": "granted"}'
        web.token = "granted"
        web.challenge = f'Bearer realm="{realm.url}/token",service="here"'
        host = web.url.removeprefix("http://")
        if login:
            config = {"auths": {host: {"auth": b64encode(login.encode()).decode()}}}
            (tmp_path / "config.json").write_text(json.dumps(config))
            monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        assert fetch(PROFILE, places(f"oci://{host}/mini:1", tmp_path)) == {"engine.onnx": DATA}
        said = realm.headers[0].get("Authorization")
        assert said == (f"Basic {b64encode(login.encode()).decode()}" if login else None)
        assert len(realm.asked) == 1


def test_a_token_of_ones_own_goes_to_the_registry(tmp_path: Path) -> None:
    with serve({}) as web:
        web.token, web.challenge = "mine", 'Bearer realm="https://nobody.invalid"'
        base = f"oci://{web.url.removeprefix('http://')}/mini:1"
        with pytest.raises(CacheError, match="404"):
            fetch(PROFILE, places(base, tmp_path, token="mine"))
        with pytest.raises(CacheError, match="401"):
            fetch(PROFILE, places(base, tmp_path, token="another"))


def test_dockers_logins_are_read_in_each_form_and_a_broken_file_is_named(tmp_path: Path) -> None:
    assert docker_logins({}) == {}
    assert docker_logins({"HOME": str(tmp_path)}) == {}
    auth = b64encode(b"ada:lovelace").decode()
    logins = {"a:5000": {"auth": auth}, "https://b/v2/": {"username": "ada", "password": "lovelace"}, "c": {}}
    (tmp_path / "config.json").write_text(json.dumps({"auths": logins}))
    assert docker_logins({"DOCKER_CONFIG": str(tmp_path)}) == {"a:5000": auth, "b": auth}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError, match=r"config\.json cannot be used"):
        docker_logins({"DOCKER_CONFIG": str(tmp_path)})


def test_a_packaged_models_artifact_is_what_a_slim_image_reads(host: str, tmp_path: Path) -> None:
    from pipelines.image import package
    from pipelines.release import oci_artifact
    from serving.contract import manifest
    from tests.support.profiles import add_profile, write_manifest

    root = tmp_path / "mini" / package.ROOT
    tags = {"backend": "onnxruntime", "precision": "fp32", "tp": "1"}
    files = {"engine.onnx": DATA, "tokenizer.json": b"{}"}
    write_manifest(root, [add_profile(root, "mini__cpu__fp32__tp1", tags, files)])
    made = oci_artifact.write(tmp_path / "mini")
    assert made.num_files == 4  # and what tells of them: the manifest and the release
    assert oci_artifact.write(tmp_path / "mini") == made
    assert push_layout(made.folder, host, "team/made") == made.manifest_digest
    (profile,) = manifest.read(root / package.MANIFEST).profiles
    release = manifest.read(root / package.MANIFEST).release
    for reference in (f":{release}", f"@{made.manifest_digest}"):
        found = fetch(profile, places(f"oci://{host}/team/made{reference}", tmp_path / reference[1:9]))
        assert found == files
