"""The commands around what is published: `enginery publish`. Reads arguments and prints, no more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pipelines.errors import PublishError


def publish(
    model_dir: Annotated[
        tuple[Path, ...], Parameter(help="dist/MODEL, as `enginery build` wrote it; all of dist when not given.")
    ] = (),
    /,
    *,
    to: Annotated[
        str, Parameter(help="s3://BUCKET/PREFIX or oci://REGISTRY/REPOSITORY:TAG: where others pull it from.")
    ],
    dist: Path = Path("dist"),
    unguarded: Annotated[
        bool,
        Parameter(
            help="Also to an S3 server without conditional writes; see to it that one publisher runs.", negative=""
        ),
    ] = False,
    replace: Annotated[bool, Parameter(help="Move a registry's tag that names another release.", negative="")] = False,
) -> int:
    """Publish built models: files by digest, then the release, then the pointer. Interrupted, the old one stands."""
    from pipelines import publish as publishing

    folders = model_dir or publishing.models_in(dist)
    if to.startswith("oci") and len(folders) > 1:
        listed = ", ".join(str(folder) for folder in folders)
        raise PublishError(f"--to {to}: a tag names one model, and here are {listed}; name one of them")
    for folder in folders:
        done = publishing.publish(
            folder, to, guarded=not unguarded, replace=replace, say=lambda text: print(text, file=sys.stderr)
        )
        number = f", number {done.sequence}" if done.sequence else ""
        state = "now current" if done.moved else "was current already"
        sent = f"{done.uploaded} blobs ({done.uploaded_bytes / 1e6:.1f} MB) sent, {done.reused} were there"
        print(f"{done.reference}\n  {state}{number}; {sent}")
        for name, digest in done.names.items():
            print(f"  {name}  {digest}")
    return 0


def register(app: App) -> None:
    app.command(publish)
