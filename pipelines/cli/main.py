"""The command line: `enginery plan | build | serve | publish | ui | worker | …`. Reads arguments and prints, no more.

Exit codes: 0 done; 1 an unexpected failure; 2 the matrix or the arguments are wrong; 3 built, but a stage of some row
failed; 10-20 a stage's own way of failing (pipelines/errors.py); 130 interrupted. A row that its gate refused is a
verdict, not a failure.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from pipelines.cli import release, terminal
from pipelines.errors import EngineryError
from serving import __version__

if TYPE_CHECKING:
    from pipelines.matrix.values import Matrix

app = App(
    name="enginery",
    help="An open engine factory: sku_matrix.yaml in; judged engines, a hashed manifest and serving images out.",
    version=__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # main says what an interruption means
)

MatrixFile = Annotated[Path, Parameter(name=["--matrix", "-m"], help="The matrix to read.")]
Select = Annotated[
    tuple[str, ...],
    Parameter(name=["--select", "-s"], help="Only rows whose name matches one of these globs.", negative=""),
]
Remeasure = Annotated[
    tuple[str, ...] | None,
    Parameter(
        help="Measure the selected rows again (or only those that match these globs), though nothing changed.",
        consume_multiple=True,
        negative="",
    ),
]
StoreDir = Annotated[Path, Parameter(name="--store", help="Where stage outputs live, by digest.")]
DistDir = Annotated[Path, Parameter(name="--dist", help="Where results are written, a folder per model.")]


@app.command
def plan(
    *,
    matrix: MatrixFile = Path("sku_matrix.yaml"),
    select: Select = (),
    store: StoreDir = Path(".store"),
    jobs: Annotated[int, Parameter(name=["--jobs", "-j"], help="Steps at a time.")] = os.cpu_count() or 1,
    remeasure: Remeasure = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Machine-readable.", negative="")] = False,
) -> int:
    """Show every row: built, judged, reused or skipped, why, on which worker, and what it will probably take."""
    from pipelines.build.project import Project
    from pipelines.cli import plan_view
    from serving.choice import hardware

    project = Project.open(matrix, store=store)
    _print_notes(project.matrix)
    memory = hardware.detect(cpu_only=True).memory_bytes
    view = plan_view.View.of(project.plan(select, remeasure), project.store, jobs=jobs, memory_bytes=memory)
    if as_json:
        print(json.dumps(plan_view.as_json(view), indent=2))
    else:
        plan_view.show(terminal.screen(), view)
    return 0


@app.command
def build(
    *,
    matrix: MatrixFile = Path("sku_matrix.yaml"),
    select: Select = (),
    store: StoreDir = Path(".store"),
    dist: DistDir = Path("dist"),
    image: Annotated[bool, Parameter(help="Also make container images.")] = True,
    base: Annotated[
        str | None,
        Parameter(help="Base image of the runtimes: a reference that can be pulled, or a tar of a root file system."),
    ] = None,
    repository: Annotated[
        str | None,
        Parameter(help="Where slim images fetch their files: s3://…, https://…, oci://… or file://….", negative=""),
    ] = None,
    jobs: Annotated[int, Parameter(name=["--jobs", "-j"], help="Steps at a time.")] = os.cpu_count() or 1,
    remeasure: Remeasure = None,
) -> int:
    """Bring every selected row up to date; write dist/MODEL with manifest, image context, images and report."""
    from pipelines.build.build_matrix import build as build_all
    from pipelines.build.project import Project
    from pipelines.cli.progress import BuildProgress, show_result

    screen = terminal.screen()
    project = Project.open(matrix, store=store, dist=dist, jobs=jobs)
    _print_notes(project.matrix)
    plan = project.plan(select, remeasure)
    with BuildProgress(screen, total=len(plan.graph.steps)) as progress:
        result = build_all(project, plan, with_images=image, base=base, repository=repository, progress=progress)
    show_result(screen, plan.graph, result)
    return result.exit_code


@app.command
def serve(
    model_dir: Annotated[Path, Parameter(help="dist/MODEL, as `enginery build` wrote it.")],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> int:
    """Serve a built model from its folder with the server that is in its image. NIM_… variables apply."""
    root = (model_dir / "rootfs" / "opt" / "nim").absolute()
    manifest = root / "etc" / "default" / "model_manifest.yaml"
    if not manifest.is_file():
        raise EngineryError(f"{manifest} is not there; build the model first: enginery build")
    environ = {
        **os.environ,
        "ENGINERY_ROOT": str(root),
        "NIM_MANIFEST_PATH": str(manifest),
        "NIM_SERVER_HOST": host,
        "NIM_HTTP_API_PORT": str(port),
    }
    os.execve(sys.executable, [sys.executable, "-m", "serving", "serve"], environ)  # noqa: S606


@app.command
def demo(
    model_dir: Annotated[Path | None, Parameter(help="dist/MODEL; the only one in dist when not given.")] = None,
    /,
    *,
    dist: DistDir = Path("dist"),
    port: int = 8000,
) -> int:
    """Start the built image (or the folder, where no Docker engine answers), ask what its task answers, show it."""
    from pipelines.cli.demo import run_demo

    return run_demo(terminal.screen(), dist, model_dir, port)


# By name: the benchmark measures any server, and nothing of the factory imports it.
app.command(
    "benchmarks.command:bench",
    name="bench",
    help="Run the benchmark's scenarios against a running server and show latencies and throughput.",
)


@app.command
def ui(
    *,
    matrix: MatrixFile = Path("sku_matrix.yaml"),
    store: StoreDir = Path(".store"),
    dist: DistDir = Path("dist"),
    host: str = "127.0.0.1",
    port: int = 3000,
) -> int:
    """Open the Dagster webserver with the factory's assets loaded."""
    from pipelines.cli.ui import exec_webserver

    exec_webserver(matrix, store=store, dist=dist, host=host, port=port)


release.register(app)


@app.command
def worker(
    *,
    sku: Annotated[tuple[str, ...], Parameter(help="A SKU that this machine has; its rows are built here.")] = (),
    home: Annotated[bool, Parameter(help="Also exports, manifests and images.", negative="")] = False,
    broker: Annotated[str, Parameter(help="Redis.", env_var="ENGINERY_BROKER")] = "redis://localhost:6379/0",
    matrix: MatrixFile = Path("sku_matrix.yaml"),
    store: StoreDir = Path(".store"),
    dist: DistDir = Path("dist"),
) -> int:
    """Build rows for the SKUs that this machine has, as the Dagster daemon sends them through Celery."""
    from pipelines.cli.worker import exec_worker

    exec_worker(matrix, store=store, dist=dist, skus=sku, home=home, broker=broker)


def _print_notes(matrix: Matrix) -> None:
    """On stderr: stdout may be for a machine."""
    for note in matrix.notes:
        print(f"{matrix.source}: {note}", file=sys.stderr)


def main() -> None:
    """The entry point. A failure that a person can act on is printed without a traceback."""
    terminal.prepare((sys.stdout, sys.stderr))
    try:
        code = app(exit_on_error=True, print_error=True, result_action="return_value")
    except EngineryError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, run the build again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
