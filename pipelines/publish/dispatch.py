"""Publish what a build made to where others pull it: which kind of place an address names, and what it takes."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import PublishError
from pipelines.publish import to_bucket, to_registry
from pipelines.publish.to_bucket import Result
from pipelines.remote import Log


def publish(folder: Path, to: str, *, guarded: bool = True, replace: bool = False, log: Log = lambda _: None) -> Result:
    """Publish dist/MODEL to s3://BUCKET/PREFIX (pointer last) or oci://REGISTRY/REPOSITORY:TAG (tag last).

    Idempotent. guarded=False: also to an S3 server without conditional writes. replace: move a tag that names another
    release. Raises PublishError; OvertakenError if somebody else published meanwhile.
    """
    if to.startswith("s3://"):
        return to_bucket.publish(folder, to, guarded=guarded, log=log)
    if to.startswith(("oci://", "oci+http://")):
        return to_registry.publish(folder, to, replace=replace, log=log)
    raise PublishError(f"--to {to}: is neither s3://BUCKET/PREFIX nor oci://REGISTRY/REPOSITORY:TAG")


def models_in(dist: Path) -> list[Path]:
    """The packaged models of a dist folder; raises PublishError."""
    found = sorted(path.parent for path in dist.glob("*/model_manifest.yaml"))
    if not found:
        raise PublishError(f"{dist} holds no packaged model; build one first: enginery build")
    return found
