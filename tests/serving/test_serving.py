"""`python -m serving`: what a person sees of a start that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.server_process import process, wait_for


@pytest.mark.parametrize(
    ("environ", "code", "words"),
    [
        ({"NIM_MODEL_PROFILE": "tiny__h100__fp8__tp1"}, 22, "No matching profile_id or profile description"),
        ({"NIM_MANIFEST_PATH": "/nowhere/manifest.yaml"}, 20, "cannot be read"),
        ({"NIM_SERVER_PORT": "http"}, 2, "NIM_SERVER_PORT"),
    ],
)
def test_a_start_that_cannot_work_exits_with_the_errors_code_and_words(
    root: Path, environ: dict[str, str], code: int, words: str
) -> None:
    with process(root, **environ) as (child, _):
        output, _ = child.communicate(timeout=60)
        assert child.returncode == code, output
        assert words in output


def test_variables_that_have_no_effect_are_said_once(root: Path) -> None:
    with process(root, NIM_GRPC_API_PORT="50051") as (child, url):
        wait_for(f"{url}/v1/health/live", 200, child)
        child.terminate()
        output, _ = child.communicate(timeout=20)
        assert output.count("NIM_GRPC_API_PORT") == 1
