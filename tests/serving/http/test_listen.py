"""TLS and MTLS with real certificates: who is served, who is turned away, and what a wrong file is called."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from serving.__main__ import _tls
from serving.http import listen
from serving.http.listen import ListenError, Tls
from serving.settings.settings import load
from tests.support.api import listening, serving
from tests.support.profiles import Tiny
from tests.support.server_process import process
from tests.support.tiny_models import embedder


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, server and client (both of the authority), and a stranger that signed itself."""
    folder = tmp_path_factory.mktemp("tls")
    names = folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2)
    for name in ("ca", "stranger"):
        openssl(
            "req",
            "-x509",
            *new,
            "-subj",
            f"/CN={name}",
            "-keyout",
            folder / f"{name}.key",
            "-out",
            folder / f"{name}.pem",
        )
    for name in ("server", "client"):
        request = folder / f"{name}.csr"
        openssl("req", *new[:-2], "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", request)
        signed = (
            "-CA",
            folder / "ca.pem",
            "-CAkey",
            folder / "ca.key",
            "-CAcreateserial",
            "-days",
            2,
            "-extfile",
            names,
        )
        openssl("x509", "-req", "-in", request, *signed, "-out", folder / f"{name}.pem")
    return folder


def client(folder: Path, name: str | None = None) -> httpx.AsyncClient:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if name is not None:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return httpx.AsyncClient(verify=context)


def server_files(folder: Path, authorities: str | None = None) -> Tls:
    ca = folder / f"{authorities}.pem" if authorities else None
    return Tls(key=folder / "server.key", certificates=folder / "server.pem", client_authorities=ca)


async def test_with_tls_answers_are_encrypted_and_clear_text_is_not_understood(tiny: Tiny, certificates: Path) -> None:
    async with serving(embedder(tiny)) as server, listening(server, server_files(certificates)) as port:
        async with client(certificates) as known:
            body = {"model": "tiny", "input": ["w1"] * 20}
            response = await known.post(f"https://127.0.0.1:{port}/v1/embeddings", json=body)
            assert response.status_code == 200
            assert len(response.json()["data"]) == 20
        async with httpx.AsyncClient() as other:
            with pytest.raises(httpx.TransportError):
                await other.get(f"http://127.0.0.1:{port}/v1/health/live")
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await other.get(f"https://127.0.0.1:{port}/v1/health/live")


async def test_with_mtls_only_clients_of_the_authority_are_served(tiny: Tiny, certificates: Path) -> None:
    files = server_files(certificates, "ca")
    async with serving(embedder(tiny)) as server, listening(server, files) as port:
        url = f"https://127.0.0.1:{port}/v1/health/live"
        async with client(certificates, "client") as known:
            assert (await known.get(url)).status_code == 200
        for name in (None, "stranger"):
            async with client(certificates, name) as unknown:
                with pytest.raises(httpx.TransportError):
                    await unknown.get(url)
        assert "/v1/health/live" in server.metrics.text().decode()
        assert 'request_count_total{route="/v1/health/live",status="200"} 1.0' in server.metrics.text().decode()


async def test_heads_over_tls_are_limited_too(tiny: Tiny, certificates: Path) -> None:
    async with (
        serving(embedder(tiny)) as server,
        listening(server, server_files(certificates)) as port,
        client(certificates) as known,
    ):
        response = await known.get(f"https://127.0.0.1:{port}/v1/models", headers={"x": "a" * 20_000})
        assert response.status_code == 431
        assert (await known.get(f"https://127.0.0.1:{port}/v1/models")).status_code == 200


def test_the_settings_say_which_files(certificates: Path) -> None:
    named = {f"NIM_SSL_{name}_PATH": str(certificates / name) for name in ("KEY", "CERTS", "CA_CERTS")}
    assert _tls(load(named)) is None
    for mode, authorities in (("TLS", None), ("MTLS", certificates / "CA_CERTS")):
        tls = _tls(load({**named, "NIM_SSL_MODE": mode}))
        assert tls == Tls(key=certificates / "KEY", certificates=certificates / "CERTS", client_authorities=authorities)


@pytest.mark.parametrize(
    ("key", "certificate"), [("client.key", "server.pem"), ("no.key", "server.pem"), ("server.key", "names")]
)
async def test_files_that_do_not_fit_are_named_before_anything_is_served(
    tiny: Tiny, certificates: Path, key: str, certificate: str
) -> None:
    async with serving(embedder(tiny)) as server:
        files = Tls(key=certificates / key, certificates=certificates / certificate)
        with pytest.raises(ListenError, match="NIM_SSL_KEY_PATH") as caught:
            listen.configure(server.app, 1, files)
        assert certificate in str(caught.value)


def test_a_process_serves_tls_and_ends_with_27_when_it_cannot(root: Path, certificates: Path) -> None:
    environ = {
        "NIM_SSL_MODE": "TLS",
        "NIM_SSL_KEY_PATH": str(certificates / "server.key"),
        "NIM_SSL_CERTS_PATH": str(certificates / "server.pem"),
    }
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with process(root, **environ) as (child, url):
        transport = httpx.HTTPTransport(verify=context, retries=50)
        with httpx.Client(transport=transport, timeout=30) as known:
            address = f"{url.replace('http://', 'https://')}/v1/health/live"
            for _ in range(600):
                try:
                    response = known.get(address)
                    break
                except httpx.TransportError:
                    assert child.poll() is None
            assert response.status_code == 200
    with process(root, **environ | {"NIM_SSL_KEY_PATH": str(certificates / "client.key")}) as (child, _):
        output, _ = child.communicate(timeout=60)
        assert child.returncode == 27, output
        assert "TLS does not start" in output


def test_a_port_that_is_taken_is_named_with_the_remedy(tmp_path: Path) -> None:
    taken = listen.bind("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(listen.ListenError, match="NIM_HTTP_API_PORT"):
        listen.bind("127.0.0.1", taken.getsockname()[1])
    taken.close()
