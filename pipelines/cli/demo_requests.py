"""What a demo asks a running server, a function for each task, and how it shows the answers."""

from __future__ import annotations

import base64
import json
import math
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipelines.errors import EngineryError
from serving.contract import manifest

TEXTS = (
    "How do I open a file and read its lines?",
    "Open a text file and iterate over it line by line.",
    "The recipe asks for two eggs and a cup of flour.",
)
MAX_SHOWN = 100  # characters of a picture's data


def embed(console: Console, url: str, folder: Path) -> None:
    body = {"model": model_of(url), "input": list(TEXTS)}
    answer = post(console, f"{url}/v1/embeddings", body)
    vectors = [item["embedding"] for item in answer["data"]]
    shown = ", ".join(f"{value:+.4f}" for value in vectors[0][:6])
    console.print(
        f"  model {answer['model']}, {len(vectors)} vectors of {len(vectors[0])}, usage {answer['usage']}\n"
        f"  first vector: {shown}, …\n"
        f"  cosine(0, 1) = {cosine(vectors[0], vectors[1]):.3f} (the same meaning), "
        f"cosine(0, 2) = {cosine(vectors[0], vectors[2]):.3f} (another)"
    )


def rerank(console: Console, url: str, folder: Path) -> None:
    query, *_ = TEXTS
    passages = (TEXTS[2], TEXTS[1], "Return the absolute value of a number.")
    body = {"model": model_of(url), "query": {"text": query}, "passages": [{"text": text} for text in passages]}
    answer = post(console, f"{url}/v1/ranking", body)
    for entry in answer["rankings"]:
        console.print(f"  {entry['logit']:+8.3f}  {escape(passages[entry['index']])}", highlight=False)
    console.print(f"  usage {answer['usage']}")


def clip(console: Console, url: str, folder: Path) -> None:
    """Pictures and captions in one request: each picture's nearest caption. Both come with the model's boot proof."""
    from serving.tasks.clip import load_golden

    root = folder / "rootfs" / "opt" / "nim"
    profile = manifest.read(folder / "model_manifest.yaml").profiles[0]
    golden = load_golden((root / profile.file("proof.json").uri).read_bytes())
    captions, pictures = list(dict.fromkeys(golden.texts)), golden.images[:4]
    encoded = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
    body = {"model": model_of(url), "input": [*captions, *encoded], "truncate": "END"}
    answer = post(console, f"{url}/v1/embeddings", body)
    vectors = [item["embedding"] for item in answer["data"]]
    texts, images = vectors[: len(captions)], vectors[len(captions) :]
    for number, image in enumerate(images):
        nearest = sorted(range(len(texts)), key=lambda i: -cosine(image, texts[i]))[:3]
        said = ", ".join(f"{escape(captions[i][:40])} ({cosine(image, texts[i]):.3f})" for i in nearest)
        console.print(f"  picture {number}: {said}", highlight=False)
    console.print(f"  usage {answer['usage']}; the report shows the pictures")


def model_of(url: str) -> str:
    return str(ask(f"{url}/v1/models")["data"][0]["id"])


def post(console: Console, url: str, body: dict[str, Any]) -> Any:
    console.print(f"\n[bold]POST {url}[/]\n  {escape(json.dumps(shortened(body)))}")
    return ask(url, body)


def shortened(value: Any) -> Any:
    """The body as a person reads it: a picture's data is cut."""
    if isinstance(value, dict):
        return {key: shortened(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shortened(part) for part in value]
    return f"{value[:40]}…" if isinstance(value, str) and len(value) > MAX_SHOWN else value


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        if body is None:
            raise  # not ready yet: asked again
        raise EngineryError(f"{url} answered {error.code}: {error.read().decode(errors='replace')}") from error


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
