"""The commands that NIM's own documents print (seeds 000, 002 and 003), run as they are printed, against our server.

Only what a document tells the reader to fill in is filled in: the image's name, the profile, the address, the model.
`docker run` goes to a stand-in that takes its options and runs the image's entrypoint, since --gpus=all needs a GPU.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.contract import manifest
from serving.start.prove import rows
from serving.tasks.base import ONLY
from serving.tasks.rerank import Encoder, RerankSpec
from tests.support import nvml_standin
from tests.support.profiles import FIRST, GENERIC, SECOND, Tiny, add_profile, root, tiny, write_manifest
from tests.support.tiny_models import reranker

__all__ = ["root", "tiny"]  # fixtures

REPOSITORY = Path(__file__).parents[2]
MANIFEST = "etc/default/model_manifest.yaml"
ON_L40S = "tiny__l40s__fp16__tp1"
# `docker run`, without Docker: variables go to the entrypoint, the rest is for a container.
DOCKER = """
import os, sys
arguments, environ = sys.argv[1:], dict(os.environ)
assert arguments.pop(0) == "run", arguments
with_value = {"-e", "-v", "-p", "-u", "--name", "--gpus", "--shm-size", "--runtime"}
while arguments[0].startswith("-"):
    option = arguments.pop(0)
    value = arguments.pop(0) if option in with_value else ""
    if option == "-e":
        name, _, text = value.partition("=")
        environ[name] = text
    elif option == "-v":
        environ["NIM_CACHE_PATH"] = value.partition(":")[0]
image = arguments.pop(0)
assert image == environ.pop("IMG_NAME"), image
os.execvpe("entrypoint", ["entrypoint", *arguments], environ)
"""


@pytest.fixture
def rootfs(root: Path, tiny: Tiny) -> Path:
    """/opt/nim of an image with three profiles: for a GPU, for any x86-64 CPU, and for anything."""
    tags = {
        **GENERIC,
        "backend": "tensorrt-rtx",
        "model_type": "tensorrt",
        "sku": "l40s",
        "gpu": "l40s",
        "precision": "fp16",
        "gpu_device": "26b9:10de",
        "compute_capability": "8.9",
        "min_vram_per_device_gb": "4",
    }
    files = tiny.files("engine.plan", b"an engine that only a GPU could tell from one")
    listed = manifest.read(root / MANIFEST).profiles
    write_manifest(root, [*listed, add_profile(root, ON_L40S, tags, files)])
    return root


@pytest.fixture
def machine(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A shell's environment on a machine with the image, and without a GPU."""
    folder = tmp_path_factory.mktemp("bin")
    shutil.copytree(REPOSITORY / "containers/bin", folder, symlinks=True, dirs_exist_ok=True)
    for name, code in (("python3", f'exec {sys.executable} "$@"'), ("docker", f"exec python3 -c '{DOCKER}' \"$@\"")):
        (folder / name).write_text(f"#!/bin/sh\n{code}\n")
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:/usr/bin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "HOME": "/nonexistent",
        "ENGINERY_ROOT": str(rootfs),
        "IMG_NAME": "enginery/tiny:0.1.0",
        "NGC_API_KEY": "unused",
        "LOCAL_NIM_CACHE": str(tmp_path_factory.mktemp("cache")),
        "CONTAINER_NAME": "tiny",
    }


def sh(command: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], env=environ, capture_output=True, text=True, check=False, timeout=120
    )


def id_of(rootfs: Path, name: str) -> str:
    return next(profile.id for profile in manifest.read(rootfs / MANIFEST).profiles if profile.name == name)


def section(text: str, title: str) -> list[str]:
    """The lines below a heading of the list."""
    after = text.partition(f"- {title}\n")[2].splitlines()
    return list(takewhile(lambda line: line.startswith("  - "), after))


# ---- 000 and 002: list-model-profiles -------------------------------------------------------------------------------

LIST_000 = "docker run --rm --runtime=nvidia --gpus=all $IMG_NAME list-model-profiles"
LIST_002 = "docker run --rm --gpus=all -e NGC_API_KEY=$NGC_API_KEY $IMG_NAME list-model-profiles"
LIST_000_WITHOUT_GPU = "docker run --rm --runtime=nvidia --gpus=all -e NIM_CPU_ONLY=1 $IMG_NAME list-model-profiles"


@nvml_standin.needs_compiler
@pytest.mark.parametrize("command", [LIST_000, LIST_002])
def test_list_model_profiles_on_a_machine_with_a_gpu(command: str, machine: dict[str, str], rootfs: Path) -> None:
    gpu = {"LD_LIBRARY_PATH": str(nvml_standin.folder()), "NVML_STANDIN": nvml_standin.L40S}
    done = sh(command, machine | gpu)
    assert done.returncode == 0, done.stderr
    assert "MODEL PROFILES\n- Compatible with system and runnable:\n" in done.stdout
    listed = section(done.stdout, "Compatible with system and runnable:")
    assert listed[0].startswith(f"  - {id_of(rootfs, ON_L40S)} ({ON_L40S})")
    assert {re.match(r"  - ([0-9a-f]{64}) \(", line)[1] for line in listed} == {  # type: ignore[index]
        id_of(rootfs, name) for name in (ON_L40S, FIRST, SECOND)
    }


@nvml_standin.needs_compiler
@pytest.mark.parametrize("command", [LIST_000_WITHOUT_GPU, LIST_000])
def test_list_model_profiles_on_a_host_with_no_available_gpus(
    command: str, machine: dict[str, str], rootfs: Path
) -> None:
    """With NIM_CPU_ONLY=1 as the document says; it works without as well."""
    driverless = {"LD_LIBRARY_PATH": str(nvml_standin.folder())}
    done = sh(command, machine | driverless)
    assert done.returncode == 0, done.stderr
    runnable = section(done.stdout, "Compatible with system and runnable:")
    assert [line.split()[1] for line in runnable] == [id_of(rootfs, FIRST), id_of(rootfs, SECOND)]
    (refused,) = section(done.stdout, "Incompatible with system:")
    assert refused.startswith(f"  - {id_of(rootfs, ON_L40S)} ({ON_L40S})")
    assert ("NIM_CPU_ONLY is set" in refused) == ("NIM_CPU_ONLY" in command)
    assert ("Driver Not Loaded" in refused) == ("NIM_CPU_ONLY" not in command)


# ---- 002: a server, with a profile by id and by name ----------------------------------------------------------------

RUN_002 = """docker run -it --rm --name=$CONTAINER_NAME \\
--gpus all \\
--shm-size=16GB \\
-e NGC_API_KEY=$NGC_API_KEY \\
-e NIM_MODEL_PROFILE="{profile}" \\
-v "$LOCAL_NIM_CACHE:/opt/nim/.cache" \\
-u $(id -u) \\
-p 8000:8000 \\
$IMG_NAME
"""


@contextmanager
def served(command: str, environ: dict[str, str], log: Path) -> Iterator[str]:
    """The command's server once it is ready: its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with log.open("wb") as output:
        running = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            env={**environ, "NIM_HTTP_API_PORT": port, "NIM_CPU_ONLY": environ.get("NIM_CPU_ONLY", "1")},
            stdout=output,
            stderr=output,
        )
    address = f"127.0.0.1:{port}"
    try:
        end = time.monotonic() + 90
        while True:
            try:
                if httpx.get(f"http://{address}/v1/health/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if running.poll() is not None or time.monotonic() > end:
                pytest.fail(f"never ready: {log.read_text()}")
            time.sleep(0.05)
        yield address
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0, log.read_text()
    finally:
        running.kill()
        running.wait(10)


@pytest.mark.parametrize("how", ["id", "name"])
def test_a_profile_is_overridden_by_id_and_by_name(
    how: str, machine: dict[str, str], rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SECOND is not what would be chosen."""
    log = tmp_path_factory.mktemp("log") / "log"
    wanted = id_of(rootfs, SECOND)
    with served(RUN_002.format(profile=wanted if how == "id" else SECOND), machine, log) as address:
        assert httpx.get(f"http://{address}/v1/metadata").json()["selectedModelProfileId"] == wanted
    assert f"Selected profile: {wanted} ({SECOND})" in log.read_text()


def test_a_named_profile_that_cannot_run_here_ends_the_start_with_its_reason(
    machine: dict[str, str], rootfs: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    done = sh(RUN_002.format(profile=ON_L40S), machine | {"NIM_CPU_ONLY": "1", "NIM_HTTP_API_PORT": port})
    assert done.returncode == 22
    assert f"is {id_of(rootfs, ON_L40S)} ({ON_L40S}), which cannot run here: " in done.stdout + done.stderr


@nvml_standin.needs_compiler
def test_the_start_logs_the_lines_that_the_documents_print(
    machine: dict[str, str], rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On a machine with a GPU whose engine is then found to be none: the next profile serves, and says so likewise."""
    log = tmp_path_factory.mktemp("log") / "log"
    gpu = {
        "LD_LIBRARY_PATH": str(nvml_standin.folder()),
        "NVML_STANDIN": nvml_standin.L40S,
        "NIM_CPU_ONLY": "0",
    }
    with served("docker run --rm --gpus all $IMG_NAME", machine | gpu, log):
        pass
    text = log.read_text()
    on_gpu, first, second = (id_of(rootfs, name) for name in (ON_L40S, FIRST, SECOND))
    printed = [
        "Detected 3 compatible profile(s).",
        f"Valid profile: {on_gpu} ({ON_L40S}) on GPUs [0]",
        f"Valid profile: {first} ({FIRST})",
        f"Valid profile: {second} ({SECOND})",
        f"Selected profile: {on_gpu} ({ON_L40S})",
        "Profile metadata: backend: tensorrt-rtx",
        "Profile metadata: compute_capability: 8.9",
        "Profile metadata: gpu: l40s",
        "Profile metadata: gpu_device: 26b9:10de",
        "Profile metadata: precision: fp16",
        "Profile metadata: tp: 1",
        f"Selected profile: {first} ({FIRST})",
        "Profile metadata: backend: openvino",
    ]
    places = [next((n for n, line in enumerate(text.splitlines()) if line.endswith(words)), -1) for words in printed]
    assert -1 not in places, (printed[places.index(-1)], text)
    assert places == sorted(places)


# ---- 003: curl ------------------------------------------------------------------------------------------------------

EMBED_003 = """curl -X 'POST' \\
  'http://<service-cluster-ip>:8000/v1/embeddings' \\
  -H 'accept: application/json' \\
  -H 'Content-Type: application/json' \\
  -d '{
    "input": "hello world",
    "model": "<model-name>",
    "input_type": "passage"
  }'
"""
RANK_003 = """curl -X "POST" \\
  "http://<ip>:31084/v1/ranking" \\
  -H 'accept: application/json' \\
  -H 'Content-Type: application/json' \\
  -d '{
  "model": "<model>",
  "query": {"text": "which way did the traveler go?"},
  "passages": [
    {"text": "two roads diverged in a yellow wood, and sorry i could not travel both and be one traveler, long i stood and looked down one as far as i could to where it bent in the undergrowth;"},
    {"text": "then took the other, as just as fair, and having perhaps the better claim because it was grassy and wanted wear, though as for that the passing there had worn them really about the same,"},
    {"text": "and both that morning equally lay in leaves no step had trodden black. oh, i marked the first for another day! yet knowing how way leads on to way i doubted if i should ever come back."},
    {"text": "i shall be telling this with a sigh somewhere ages and ages hence: two roads diverged in a wood, and i, i took the one less traveled by, and that has made all the difference."}
  ],
  "truncate": "END"
}'
"""  # noqa: E501


def answer(command: str) -> Any:
    """What a curl command prints, decoded; without curl, what it would send is sent."""
    if shutil.which("curl"):
        done = sh(command.replace("curl ", "curl -sS --fail-with-body --max-time 60 ", 1), dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)
    words = shlex.split(command.replace("\\\n", " "))
    headers = dict(words[n + 1].split(": ") for n, word in enumerate(words) if word == "-H")
    url = next(word for word in words if word.startswith("http"))
    response = httpx.post(url, headers=headers, content=words[words.index("-d") + 1], timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_embedding_service_is_tested_with_curl(
    machine: dict[str, str], tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    with served("docker run --rm $IMG_NAME", machine, log) as address:
        command = EMBED_003.replace("<service-cluster-ip>:8000", address).replace("<model-name>", "tiny")
        body = answer(command)
    assert body["object"] == "list"
    assert body["model"] == "tiny"
    (item,) = body["data"]
    assert (item["index"], item["object"]) == (0, "embedding")
    assert np.allclose(item["embedding"], tiny.reference(["hello world"])[0], atol=1e-5)
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == 4  # [CLS] hello world [SEP]


def test_the_reranking_service_is_tested_with_curl(
    machine: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("reranker")
    model = reranker()
    tokenizer = knowing_the_poem(model.tokenizer)
    files = model.files() | {"tokenizer.json": tokenizer}
    write_manifest(folder, [add_profile(folder, SECOND, GENERIC, files)])
    environ = machine | {"ENGINERY_ROOT": str(folder)}
    with served("docker run --rm $IMG_NAME", environ, folder / "log") as address:
        command = RANK_003.replace("<ip>:31084", address).replace("<model>", "tiny-rerank")
        body = answer(command)
    sent = json.loads(shlex.split(RANK_003.replace("\\\n", " "))[-1])
    passages = [passage["text"] for passage in sent["passages"]]
    assert isinstance(model.spec, RerankSpec)
    items = Encoder(tokenizer, model.spec).encode(sent["query"]["text"], passages, truncate="END")
    expected = rows(model.backend(ONLY).infer, model.spec.towers[0], items)[:, 0]
    assert len({round(float(score), 3) for score in expected}) == 4  # so there is an order to find
    assert [item["index"] for item in body["rankings"]] == list(np.argsort(-expected))
    assert np.allclose([item["logit"] for item in body["rankings"]], np.sort(expected)[::-1], atol=1e-4)
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] == sum(item.shape[-1] for item in items)


def knowing_the_poem(tokenizer: bytes) -> bytes:
    """Words of the command instead of those that the tiny model's proof does not use: w20 to w79."""
    words = list(dict.fromkeys(re.findall(r"[a-z]+", RANK_003.partition("passages")[2])))
    text = tokenizer.decode()
    for number, word in zip(range(20, 80), words, strict=False):
        text = text.replace(f'"w{number}"', f'"{word}"')
    return text.encode()
