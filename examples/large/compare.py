"""Serve what random_weights.py built on this machine's CPU, and compare its vectors with those of transformers."""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.recipes import transformer
from pipelines.recipes.pytorch import reproducible

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 600
TEXTS = (
    "Return the value of the named attribute of an object.",
    "A file.",
    "Opens the archive, reads every entry in turn and gives back those whose name matches the pattern. " * 8,
    "What does the scheduler do when two timers are due at the same time?",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what random_weights.py was given as --folder")
    folder = parser.parse_args().folder.absolute()
    (release,) = (folder / "dist").iterdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(release), "--port", str(port)]
    started = time.monotonic()
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        ready_s = wait_until_ready(server, port, started)
        print(f"ready after {ready_s:.1f} s, {memory(server.pid)}")
        asked = time.monotonic()
        served = embed(port, release.name)
        print(f"{len(TEXTS)} texts in one request: {time.monotonic() - asked:.2f} s, {memory(server.pid)}")
    finally:
        server.terminate()
        server.wait(timeout=60)
    cosines = [float(ours @ theirs) for ours, theirs in zip(served, original(folder / "model"), strict=True)]
    print("cosine to transformers in fp32:", ", ".join(f"{cosine:.6f}" for cosine in cosines))
    return 0 if min(cosines) > 0.999 else 1


def wait_until_ready(server: subprocess.Popen[bytes], port: int, started: float) -> float:
    """Seconds from the start."""
    while time.monotonic() - started < READY_TIMEOUT_S and server.poll() is None:
        try:
            status, _ = ask(port, "GET", "/v1/health/ready")
        except OSError:
            status = 0
        if status == http.client.OK:
            return time.monotonic() - started
        time.sleep(0.2)
    raise SystemExit("the server did not become ready; its log is above")


def ask(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def memory(pid: int) -> str:
    """Resident now and at most, of the server's process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "kB" in value}
    return f"resident {kib['VmRSS'] * 1024 / 1e9:.2f} GB, at most {kib['VmHWM'] * 1024 / 1e9:.2f} GB"


def embed(port: int, model: str) -> NDArray[np.float32]:
    body = json.dumps({"model": model, "input": TEXTS, "input_type": "passage"})
    status, answer = ask(port, "POST", "/v1/embeddings", body)
    if status != http.client.OK:
        raise SystemExit(f"the server answered {status}: {answer.decode()}")
    return np.array([entry["embedding"] for entry in json.loads(answer)["data"]], np.float32)


def original(folder: Path) -> NDArray[np.float32]:
    """What PyTorch gives for the same texts, mean of the tokens' states, each of length 1."""
    import torch
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    body, vectors = transformer.Original(folder), []
    with torch.inference_mode(), reproducible():
        for text in TEXTS:
            ids = tokenizer(text, truncation=True)["input_ids"]
            vectors.append(torch.nn.functional.normalize(body.hidden_state(ids).mean(dim=0), dim=0).numpy())
    return np.stack(vectors)


if __name__ == "__main__":
    sys.exit(main())
