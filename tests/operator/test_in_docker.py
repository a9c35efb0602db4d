"""The operator's manifest pod and cache job in a real container, as the user it gives them."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest

from pipelines.image.images import ImageResult
from tests.operator.match_profiles import EXTRACT, ModelSpec, match_profiles, read_manifest
from tests.support.images import files_of

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
# runAsNonRoot as the spec's default user and group, no privilege escalation, no capabilities, no GPU.
POD = (
    *("--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=1000:2000"),
    *("--tmpfs=/scratch", "--pids-limit=256"),
)


def test_the_manifest_pods_log_is_the_manifest_and_nothing_else(
    images: dict[str, ImageResult], image_store: Path
) -> None:
    for result in images.values():
        expected = files_of(result, image_store)["opt/nim/etc/default/model_manifest.yaml"]
        name = f"enginery-test-{uuid.uuid4().hex[:12]}"
        running = subprocess.Popen(
            ["docker", "run", "--rm", "--no-healthcheck", "--name", name, *POD, result.image_id, "sh", "-c", EXTRACT],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert running.stdout is not None
            log = running.stdout.read(len(expected))
            subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True, timeout=60)
            log += running.stdout.read()
        finally:
            running.kill()
            running.wait(60)
        assert log == expected
        assert match_profiles(read_manifest(log.decode()), ModelSpec(), ("NVIDIA-L40S",))


def test_a_cache_job_runs_as_the_operators_user_without_a_home(
    images: dict[str, ImageResult], image_store: Path
) -> None:
    """The image has its files, so the job has nothing to fetch: it must run, and verify them."""
    manifest = files_of(images["cpu"], image_store)["opt/nim/etc/default/model_manifest.yaml"]
    ids = [profile.id for profile in match_profiles(read_manifest(manifest.decode()), ModelSpec(), ("Tesla-T4",))]
    environ = ("--env=NIM_CACHE_PATH=/model-store", "--env=HOME=/nonexistent", "--tmpfs=/model-store:uid=1000,gid=2000")
    command = [
        "docker",
        "run",
        "--rm",
        "--no-healthcheck",
        *POD,
        *environ,
        images["cpu"].image_id,
        "download-to-cache",
        "--profiles",
        *ids,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(one in done.stdout for one in ids)
