"""Publish a model to an OCI registry: blobs, then manifests by digest, then what belongs to the images, then tags.

In oci://REGISTRY/REPOSITORY:
  TAG                    the release: every engine, model_manifest.yaml and release.json, as one artifact. Slim images
                         pull from it, and it moves last: who reads it finds all that it names.
  TAG-cpu, TAG-cpu-slim  the images, by runtime and kind
  (referrers)            of each image: its manifest and release.json, so that a person sees what fits before pulling
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.errors import OvertakenError, PublishError
from pipelines.image import build, oci
from pipelines.publish.to_bucket import Result
from pipelines.release import oci_artifact
from pipelines.release.document import ImageFacts, Published
from pipelines.remote import Log
from pipelines.remote.address import parse
from pipelines.remote.registry import Registry
from pipelines.remote.remedies import nothing_published
from pipelines.store.files import canonical
from pipelines.store.store import Blob

REFERRER_TYPE = "application/vnd.enginery.release.v1"  # the artifactType of what lies beside an image
# Annotations of what lies beside an image
RUNTIME = "dev.enginery.runtime"  # of which runtime the image is
RELEASE = "dev.enginery.release"  # the release's digest
SEQUENCE = "dev.enginery.sequence"  # "1" for the first that was attached: a registry lists referrers in no order
BLOBS_AT_ONCE = 4


def image_tag(tag: str, runtime: str, kind: str) -> str:
    """ "1.0.0-cpu-slim"."""
    return f"{tag}-{runtime}{'-slim' if kind == 'slim' else ''}"


def publish(folder: Path, to: str, *, replace: bool = False, log: Log = lambda _: None) -> Result:
    """Publish dist/MODEL with its images to oci://REGISTRY/REPOSITORY:TAG (its release where no tag is given).

    A tag that names another release is refused unless replace=True. Raises PublishError, OvertakenError.
    """
    address = parse(to)
    if address.digest is not None:
        raise PublishError(f"--to {to}: a digest cannot be published to; give a tag")
    registry = Registry(address, token=os.environ.get("ENGINERY_REPOSITORY_TOKEN"))
    made = oci_artifact.contents(folder)
    new, digest = made.release, oci.blob_of(made.manifest).digest
    tag = address.tag or new.document.release
    before = registry.digest_of(tag)
    if before not in (None, digest) and not replace:
        raise PublishError(
            f"{address.at(tag)} is another release ({before}, this one is {digest}); raise `release` in the matrix, "
            "give another tag, or say --replace"
        )
    blobs: dict[str, tuple[Blob, Path | bytes]] = {
        blob.digest: (blob, source)
        for blob, source in [
            (oci.blob_of(oci_artifact.EMPTY), oci_artifact.EMPTY),
            *((b, s) for _, b, s in made.layers),
        ]
    }
    manifests = {facts.digest: _image(folder / build.LAYOUT, facts, blobs) for facts in new.document.images}
    sent = _send_all(registry, blobs, log)
    registry.push_manifest(digest, made.manifest)
    for one, content in manifests.items():
        registry.push_manifest(one, content)
    for facts in new.document.images:
        _attach(registry, new, facts, len(manifests[facts.digest]))
    named = {image_tag(tag, facts.runtime, facts.kind): facts.digest for facts in new.document.images}
    for name, one in named.items():
        if registry.digest_of(name) != one:
            registry.push_manifest(name, manifests[one])
    if before != digest:
        _move(registry, tag, made.manifest, digest, before)
    return Result(
        reference=address.uri(tag),
        digest=new.digest,
        uploaded=len(sent),
        uploaded_bytes=sum(sent.values()),
        reused=len(blobs) - len(sent),
        moved=before != digest,
        names={address.uri(tag): digest} | {address.at(name): one for name, one in named.items()},
    )


def _image(layout: Path, facts: ImageFacts, blobs: dict[str, tuple[Blob, Path | bytes]]) -> bytes:
    """An image's manifest out of its layout; what it names joins the blobs. Raises PublishError."""
    path = layout / oci.blob_path(facts.digest)
    content = path.read_bytes() if path.is_file() else b""
    if oci.blob_of(content).digest != facts.digest:
        raise PublishError(f"{path} is missing or damaged; build the images again: enginery build")
    described: dict[str, Any] = json.loads(content)
    for one in (described["config"], *described["layers"]):
        source = layout / oci.blob_path(one["digest"])
        if not source.is_file() or source.stat().st_size != one["size"]:
            raise PublishError(f"{source} is missing or damaged; build the images again: enginery build")
        blobs[one["digest"]] = (Blob(digest=one["digest"], size_bytes=one["size"]), source)
    return content


def newest(referrers: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of what enginery attached to an image, what it attached last."""
    return max(referrers, key=lambda referrer: (_sequence(referrer), referrer["digest"]), default=None)


def _sequence(referrer: Mapping[str, Any] | None) -> int:
    return int((referrer or {}).get("annotations", {}).get(SEQUENCE, 0))


def _attach(registry: Registry, new: Published, facts: ImageFacts, manifest_bytes: int) -> None:
    """Attach the release's documents to an image, small enough to look at before pulling it."""
    last = newest(registry.referrers(facts.digest, REFERRER_TYPE))
    if last is not None and last.get("annotations", {}).get(RELEASE) == new.digest:
        return
    subject = Blob(digest=facts.digest, size_bytes=manifest_bytes)
    annotations = {RUNTIME: facts.runtime, RELEASE: new.digest, SEQUENCE: str(_sequence(last) + 1)}
    content = canonical(
        {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST_TYPE,
            "artifactType": REFERRER_TYPE,
            "config": oci.descriptor(oci_artifact.EMPTY_TYPE, oci.blob_of(oci_artifact.EMPTY)),
            "layers": oci_artifact.described(oci_artifact.documents(new)),
            "subject": oci.descriptor(oci.MANIFEST_TYPE, subject),
            "annotations": {**annotations, oci_artifact.TITLE: new.document.model},
        }
    )
    registry.attach(content, facts.digest)


def _send_all(registry: Registry, blobs: dict[str, tuple[Blob, Path | bytes]], log: Log) -> dict[str, int]:
    def send(blob: Blob, source: Path | bytes) -> bool:
        sent = registry.push_blob(blob, source)
        if sent and blob.size_bytes > 1_000_000:
            log(f"sent {blob.digest} ({blob.size_bytes / 1e6:.1f} MB)")
        return sent

    problems, sent = list[PublishError](), dict[str, int]()
    with ThreadPoolExecutor(BLOBS_AT_ONCE) as pool:
        waiting = {digest: pool.submit(send, *each) for digest, each in blobs.items()}
        for digest, each in waiting.items():
            try:
                if each.result():
                    sent[digest] = blobs[digest][0].size_bytes
            except PublishError as error:
                problems.append(error)
    if problems:
        raise nothing_published(registry.address.at(registry.address.reference), problems)
    return sent


def _move(registry: Registry, tag: str, content: bytes, digest: str, before: str | None) -> None:
    """Registries have no conditional writes: look right before and right after, and say so if it was somebody else."""
    for moment in ("before", "after"):
        now, expected = registry.digest_of(tag), before if moment == "before" else digest
        if now not in (expected, digest):
            raise OvertakenError(
                f"{registry.address.at(tag)}: somebody else published meanwhile; it is now {now}. This release is "
                f"there as {registry.address.at(digest)}; look at both with `enginery diff`"
            )
        if moment == "before":
            registry.push_manifest(tag, content)
