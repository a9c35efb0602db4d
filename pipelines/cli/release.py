"""What is published: `enginery publish | inspect | explain | diff | gc`. Reads arguments and prints, no more."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pipelines.errors import PublishError

NONE_RUNS = 3


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
    from pipelines.publish import dispatch as publishing

    folders = model_dir or publishing.models_in(dist)
    if to.startswith("oci") and len(folders) > 1:
        listed = ", ".join(str(folder) for folder in folders)
        raise PublishError(f"--to {to}: a tag names one model, and here are {listed}; name one of them")
    for folder in folders:
        done = publishing.publish(
            folder, to, guarded=not unguarded, replace=replace, log=lambda text: print(text, file=sys.stderr)
        )
        number = f", number {done.sequence}" if done.sequence else ""
        state = "now current" if done.moved else "was current already"
        sent = f"{done.uploaded} blobs ({done.uploaded_bytes / 1e6:.1f} MB) sent, {done.reused} were there"
        print(f"{done.reference}\n  {state}{number}; {sent}")
        for name, digest in done.names.items():
            print(f"  {name}  {digest}")
    return 0


Reference = Annotated[
    str,
    Parameter(
        help="s3://BUCKET/PREFIX/MODEL (also :VERSION, @NUMBER, ~1), oci://REGISTRY/REPOSITORY:TAG or dist/MODEL."
    ),
]
Json = Annotated[bool, Parameter(name="--json", help="Machine-readable.", negative="")]


def inspect(
    reference: Reference,
    /,
    *,
    verify: Annotated[bool, Parameter(help="Also read every byte of it and hash it.", negative="")] = False,
    as_json: Json = False,
) -> int:
    """Show what is in a release or image without pulling it: profiles, sizes, figures of the gate, images."""
    from pipelines.cli.release_view import show_release
    from pipelines.cli.terminal import screen
    from pipelines.inspect import resolve, summary
    from pipelines.inspect.verify import verify as verify_release

    if verify:
        checked = verify_release(reference)
        if checked.problems:
            remedy = "build the model again" if checked.resolved.folder else "publish it again"
            listed = "\n".join(f"  {problem}" for problem in checked.problems)
            raise PublishError(f"{reference}: is not whole; {remedy}:\n{listed}")
        print(
            f"{reference}: {checked.num_files} files ({checked.size_bytes / 1e6:.1f} MB) read and right, "
            f"{checked.num_images} images whole",
            file=sys.stderr,
        )
    resolved = resolve.read(reference)
    if as_json:
        print(json.dumps(summary.as_json(resolved), indent=2))
    else:
        show_release(screen(), resolved)
    return 0


def explain(
    reference: Reference,
    /,
    *,
    gpu: Annotated[
        str | None, Parameter(name=["--gpu", "--sku"], help="A SKU of the matrix; all of them when not given.")
    ] = None,
    gpus: Annotated[int, Parameter(help="How many of them the container is given.")] = 1,
    runtime: Annotated[str | None, Parameter(help="Whose image is run: rtx, cuda or cpu.")] = None,
    cpu: Annotated[str | None, Parameter(help="The SKU of a GPU's host; one with AVX2 when not given.")] = None,
    driver: Annotated[str, Parameter(help="The version of NVIDIA's driver.")] = "580.65.06",
    as_json: Json = False,
) -> int:
    """Say which profile a server would choose on a SKU, and why none of the others. Exit code 3: none would run."""
    from pipelines.cli.release_view import show_choices, show_explanation
    from pipelines.cli.terminal import screen
    from pipelines.inspect import resolve
    from pipelines.inspect.explain import explain as explain_sku
    from pipelines.inspect.explain import features_of

    resolved = resolve.read(reference)
    skus = resolved.release.document.skus
    if cpu is not None and cpu not in skus:
        raise PublishError(f"--cpu {cpu}: the release knows no such SKU; it has {', '.join(skus)}")
    explanations = [
        explain_sku(
            resolved.release,
            sku,
            runtime=runtime or resolved.runtime,
            num_gpus=gpus,
            cpu_features=features_of(skus[cpu]) if cpu is not None else None,
            driver=driver,
        )
        for sku in ([gpu] if gpu else skus)
    ]
    if as_json:
        content = [explanation.json() for explanation in explanations]
        print(json.dumps(content[0] if gpu else content, indent=2))
    elif gpu:
        show_explanation(screen(), explanations[0])
    else:
        show_choices(screen(), explanations)
    return 0 if all(explanation.chosen for explanation in explanations) else NONE_RUNS


def diff(first: Reference, second: Reference, /, *, as_json: Json = False) -> int:
    """Show what differs between two releases: profiles, digests, figures of the gate, sizes, images."""
    from pipelines.cli.release_view import show_diff
    from pipelines.cli.terminal import screen
    from pipelines.inspect import resolve
    from pipelines.inspect.diff import diff as diff_releases

    difference = diff_releases(resolve.read(first).release, resolve.read(second).release)
    if as_json:
        print(json.dumps(difference.json(), indent=2))
    else:
        show_diff(screen(), difference)
    return 0


def gc(
    *,
    to: Annotated[str, Parameter(help="s3://BUCKET/PREFIX, as it was published to.")],
    keep: Annotated[int, Parameter(help="How many releases of each model stay.")] = 5,
    grace: Annotated[str, Parameter(help="What is younger stays: 7d, 36h; a day at least.")] = "7d",
    dry_run: Annotated[bool, Parameter(help="Only say what would go.", negative="")] = False,
) -> int:
    """Remove from a bucket what no kept release needs and what nobody is publishing."""
    from pipelines.publish import gc as publish_gc

    found = publish_gc.collect(
        to,
        keep=keep,
        grace=publish_gc.parse_age(grace),
        dry_run=dry_run,
        log=lambda text: print(text, file=sys.stderr),
    )
    print(publish_gc.text(found, dry_run=dry_run))
    return 0


def register(app: App) -> None:
    for command in (publish, inspect, explain, diff, gc):
        app.command(command)
