"""Find a release by its reference, wherever it is published: by the code that images pull with. No blob is read.

References:
  s3://BUCKET/PREFIX/MODEL, https://HOST/PREFIX/MODEL, file:///PREFIX/MODEL   what is current there;
      with :VERSION, @NUMBER, @sha256:… or ~1 (the one before) what was
  oci://REGISTRY/REPOSITORY:TAG, REGISTRY/REPOSITORY:TAG     a release, or an image beside which one lies
  dist/MODEL                                                                    what a build made, not yet published
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import PublishError
from pipelines.publish import to_bucket
from pipelines.publish.to_registry import REFERRER_TYPE, RUNTIME, newest
from pipelines.release import document as releases
from pipelines.release import oci_artifact
from pipelines.release.document import Published
from pipelines.remote.address import parse
from pipelines.remote.pointer import ReleaseEntry, load_pointer, pointer_key
from pipelines.remote.registry import Registry
from pipelines.store.files import digest_of
from serving.cache.sources import Sources
from serving.cache.sources.base import Location, SourceError, opened

_IN_BUCKET = re.compile(
    r"(?P<base>(?:s3|https?|file)://.+?)/(?P<model>[A-Za-z0-9][A-Za-z0-9._-]*)"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64})|@(?P<number>[0-9]+)|:(?P<version>[\w.+-]+)|~(?P<back>[0-9]+))?"
)


@dataclass(frozen=True, kw_only=True)
class ResolvedRelease:
    """A release, and what its place says of it."""

    reference: str
    release: Published
    entry: ReleaseEntry | None = None  # of a bucket: when it was published, as which number
    num_releases: int = 0  # that the bucket's pointer remembers
    runtime: str | None = None  # of an image: only its profiles are in it
    repository: str | None = None  # where its files can be pulled from; None: not published
    folder: bool = False  # the reference is dist/MODEL


def read(reference: str) -> ResolvedRelease:
    """The release that a reference names; raises PublishError with every word that helps to find it."""
    if (match := _IN_BUCKET.fullmatch(reference.rstrip("/"))) is not None:
        return _in_bucket(reference, match)
    if "://" not in reference and Path(reference).is_dir():
        return ResolvedRelease(reference=reference, release=releases.of_folder(Path(reference)), folder=True)
    try:
        address = parse(reference)
    except PublishError:
        raise PublishError(
            f"{reference}: is no reference; give s3://BUCKET/PREFIX/MODEL, oci://REGISTRY/REPOSITORY:TAG, "
            "REGISTRY/REPOSITORY:TAG, or a folder dist/MODEL"
        ) from None
    return _in_registry(reference, Registry(address, token=os.environ.get("ENGINERY_REPOSITORY_TOKEN")))


def _in_bucket(reference: str, match: re.Match[str]) -> ResolvedRelease:
    base, model = match["base"], match["model"]
    sources = Sources(token=os.environ.get("ENGINERY_REPOSITORY_TOKEN"))
    try:
        data = fetch(sources, base, pointer_key(model))
    except PublishError as error:
        raise PublishError(f"{error}; a reference ends in the model's name: s3://BUCKET/PREFIX/MODEL") from None
    pointer = load_pointer(data, f"{base}/{pointer_key(model)}")
    if match["digest"]:
        entries = [entry for entry in pointer.releases if entry.digest == match["digest"]]
    elif match["number"]:
        entries = [entry for entry in pointer.releases if entry.sequence == int(match["number"])]
    elif match["version"]:
        entries = [entry for entry in pointer.releases if entry.release == match["version"]]
    else:
        entries = list(pointer.releases[int(match["back"] or 0) :])
    if not entries:
        recent = "\n".join(f"  @{e.sequence}  {e.release}  {e.published_at}  {e.digest}" for e in pointer.releases[:20])
        raise PublishError(f"{reference}: there is no such release of {model}; there are:\n{recent}")
    document = _document(sources, base, entries[0].digest)
    listed = _document(sources, base, json.loads(document)["manifest"])
    return ResolvedRelease(
        reference=reference,
        release=releases.load(document, listed, source=reference),
        entry=entries[0],
        num_releases=len(pointer.releases),
        repository=base,
    )


def _document(sources: Sources, base: str, digest: str) -> bytes:
    data = fetch(sources, base, to_bucket.document_key(digest))
    if (actual := digest_of(data)) != digest:
        raise PublishError(f"{base}/{to_bucket.document_key(digest)} hashes to {actual}; publish this release again")
    return data


def fetch(sources: Sources, base: str, key: str) -> bytes:
    """A small file of a repository, by the server's own reader."""
    location, data = Location(uri=f"{base}/{key}", within=base), b""
    try:
        with opened(sources.of(location), location, 0, "") as stream:
            while chunk := stream.read(1 << 20):
                data += chunk
                if len(data) > releases.MAX_BYTES:
                    raise SourceError("is too large for what it should be")
    except SourceError as error:
        raise PublishError(f"{location.uri}: {error}") from None
    return data


def _in_registry(reference: str, registry: Registry) -> ResolvedRelease:
    address = registry.address
    content = registry.manifest(address.reference)
    if content is None:
        raise PublishError(f"{address.at(address.reference)}: the registry has no such tag or digest")
    described: dict[str, Any] = json.loads(content)
    if described.get("artifactType") == oci_artifact.TYPE:
        release = _titled(registry, described, reference)
        return ResolvedRelease(reference=reference, release=release, repository=address.uri(address.reference))
    digest = digest_of(content)
    referrer = newest(registry.referrers(digest, REFERRER_TYPE))
    if referrer is None:
        raise PublishError(
            f"{address.at(address.reference)} is neither a release nor an image beside which one lies; publish it with "
            "`enginery publish`"
        )
    data = registry.manifest(referrer["digest"])
    if data is None:
        raise PublishError(f"{address.at(referrer['digest'])} is listed beside the image and not there; publish again")
    attached = json.loads(data)
    return ResolvedRelease(
        reference=reference,
        release=_titled(registry, attached, reference),
        runtime=attached.get("annotations", {}).get(RUNTIME),
    )


def _titled(registry: Registry, described: Mapping[str, Any], reference: str) -> Published:
    layers = {layer.get("annotations", {}).get(oci_artifact.TITLE): layer["digest"] for layer in described["layers"]}
    if missing := [name for name in (releases.DOCUMENT, releases.MANIFEST) if name not in layers]:
        raise PublishError(f"{reference}: has no {' and no '.join(missing)}; publish it with `enginery publish`")
    document, listed = (registry.blob(layers[n], releases.MAX_BYTES) for n in (releases.DOCUMENT, releases.MANIFEST))
    return releases.load(document, listed, source=reference)
