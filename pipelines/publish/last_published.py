"""What the factory publishes by itself: the one destination of all models, and what was published last of each.

The record lies in the store, so that whether something is due is known without asking the bucket or the registry.
Publishing itself is pipelines.publish.dispatch; this module imports no dagster.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import PublishError
from pipelines.publish import dispatch as publishing
from pipelines.publish.to_bucket import Result
from pipelines.remote import Log
from pipelines.remote.address import parse
from pipelines.remote.pointer import pointer_key
from pipelines.store.files import canonical, file_digest, write_atomically
from pipelines.store.store import Store

MODEL = "{model}"
RELEASED = ("package.json", "images.json")  # of dist/MODEL: together they decide what its release is
NO_DESTINATION = (
    "no destination is set: start Dagster with ENGINERY_PUBLISH_TO=s3://BUCKET/PREFIX or "
    "oci://REGISTRY/REPOSITORY/{model} (docs/dagster.md)"
)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where every model is published to, and what `enginery publish` is told besides."""

    to: str  # "s3://models/prod", "oci://registry.example/models/{model}:nightly"
    guarded: bool = True
    replace: bool = False

    def of(self, model: str) -> str:
        """One model's address; raises PublishError where all models would get the same tag."""
        if self.to.startswith("oci") and MODEL not in self.to:
            raise PublishError(f"{self.to}: a tag names one model; put {MODEL} into the address")
        return self.to.replace(MODEL, model)


def publish(folder: Path, destination: Destination, store: Store, *, log: Log = lambda _: None) -> Result:
    """Publish dist/MODEL as `enginery publish` does, and write down what was published. Raises PublishError."""
    to, built = destination.of(folder.name), _built(folder)
    done = publishing.publish(folder, to, guarded=destination.guarded, replace=destination.replace, log=log)
    record = {"to": to, "built": built, "reference": done.reference, "digest": done.digest}
    write_atomically(_path(store, folder.name), canonical(record))
    return done


def unpublished(dist: Path, destination: Destination, store: Store, models: Iterable[str]) -> dict[str, str]:
    """Of the models that are packaged, those whose release is not what was published last, each with the reason."""
    found = {}
    for model in models:
        if not (built := _built(dist / model)):
            continue
        to, last = destination.of(model), _last(store, model)
        if last.get("to") != to:
            found[model] = f"never published to {to}"
        elif last.get("built") != built:
            found[model] = f"{dist / model} is not what was last published, {last['reference']}"
    return found


def references(store: Store) -> dict[str, str]:
    """What was published last, of every model that ever was: model -> reference."""
    models = sorted(path.stem for path in (store.root / "published").glob("*.json"))
    return {model: str(last["reference"]) for model in models if (last := _last(store, model))}


def link(reference: str, environ: Mapping[str, str]) -> str:
    """Where a browser finds the pointer of a release in a bucket, or the manifest behind a registry's tag."""
    if reference.startswith("s3://"):
        base, _, model = reference.removeprefix("s3://").rpartition("/")
        endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
        return f"{endpoint.rstrip('/')}/{base}/{pointer_key(model)}"
    address = parse(reference)
    return f"{address.base}/manifests/{address.reference}"


def _built(folder: Path) -> dict[str, str]:
    """The release that dist/MODEL is, by the digests of what decides it; nothing if it is not packaged."""
    digests = {name: file_digest(folder / name) for name in RELEASED if (folder / name).is_file()}
    return digests if RELEASED[0] in digests else {}


def _path(store: Store, model: str) -> Path:
    return store.root / "published" / f"{model}.json"


def _last(store: Store, model: str) -> Mapping[str, object]:
    """What was written down. Nothing, if it cannot be read: then it is published again, which changes nothing there."""
    try:
        said = json.loads(_path(store, model).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
