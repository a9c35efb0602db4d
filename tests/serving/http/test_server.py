"""The life of a server: it answers probes while it loads, serves, and drains at the end."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import httpx
import numpy as np

from tests.support.profiles import Tiny
from tests.support.server_process import process, wait_for


def test_a_process_answers_probes_while_it_loads_serves_and_drains_on_sigterm(root: Path, tiny: Tiny) -> None:
    with process(root, NIM_JSONL_LOGGING="1") as (child, url):
        wait_for(f"{url}/v1/health/live", 200, child)
        wait_for(f"{url}/v1/health/ready", 200, child)
        body = {"model": "tiny", "input": list(tiny.golden.texts[:4])}
        data = httpx.post(f"{url}/v1/embeddings", json=body).json()["data"]
        assert np.allclose([item["embedding"] for item in data], tiny.golden.vectors[:4], atol=1e-5)
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=10)
        assert child.returncode == 0
        (line,) = [line for line in map(json.loads, output.splitlines()) if line["message"] == "request"]
        assert (line["route"], line["status"], line["num_items"]) == ("/v1/embeddings", 200, 4)
        assert 0 < line["engine_ms"] <= line["duration_ms"]


def test_a_signal_while_loading_ends_the_process_at_once(root: Path) -> None:
    with process(root) as (child, url):
        wait_for(f"{url}/v1/health/live", 200, child)
        started = time.monotonic()
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=20)
        assert child.returncode == 0
        assert time.monotonic() - started < 10  # two seconds on a machine that is not shared
