"""The commands around what is published: `enginery publish`. Reads arguments and prints, no more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter


def publish(
    model_dir: Annotated[
        tuple[Path, ...], Parameter(help="dist/MODEL, as `enginery build` wrote it; all of dist when not given.")
    ] = (),
    /,
    *,
    to: Annotated[str, Parameter(help="s3://BUCKET/PREFIX: where slim images pull from, and readers look.")],
    dist: Path = Path("dist"),
    unguarded: Annotated[
        bool,
        Parameter(
            help="Also to an S3 server without conditional writes; see to it that one publisher runs.", negative=""
        ),
    ] = False,
) -> int:
    """Publish built models: files by digest, then the release, then the pointer. Interrupted, the old one stands."""
    from pipelines import publish as publishing

    for folder in model_dir or publishing.models_in(dist):
        done = publishing.publish(folder, to, guarded=not unguarded, say=lambda text: print(text, file=sys.stderr))
        how = f"now current, number {done.sequence}" if done.moved else f"was current already, number {done.sequence}"
        sent = f"{done.uploaded} files ({done.uploaded_bytes / 1e6:.1f} MB) sent, {done.reused} were there"
        print(f"{done.reference}\n  {how}; {sent}")
    return 0


def register(app: App) -> None:
    app.command(publish)
