"""What a person at a terminal sees of a build. Knows rich; decides nothing."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar

from pipelines.build import executor
from pipelines.build.executor import StepResult
from pipelines.build.result import BuildResult
from pipelines.cli.plan_view import sharing
from pipelines.image.images import describe
from pipelines.plan.graph import Graph, Step


class _StepBar(BarColumn):
    """A bar for the build, whose end is known; none for a running step, whose end is not."""

    def render(self, task: Task) -> ProgressBar:
        return ProgressBar(total=1, completed=0, width=0) if task.total is None else super().render(task)


class BuildProgress(executor.Progress):
    """Live progress of a build: a bar over all steps, a spinner per running one, a line per finished one."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self._finished, self._total = 0, total
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            _StepBar(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task("steps", total=total, count=f"0/{total}")
        self._running: dict[str, TaskID] = {}

    def __enter__(self) -> BuildProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def log(self, message: str) -> None:
        self._progress.update(self._all, description=message)

    def started(self, step: Step) -> None:
        self._running[step.id] = self._progress.add_task(f"{step.stage} {step.subject}", total=None, count="")

    def finished(self, step: Step, result: StepResult) -> None:
        if step.id in self._running:
            self._progress.remove_task(self._running.pop(step.id))
        self._finished += 1
        self._progress.update(self._all, advance=1, count=f"{self._finished}/{self._total}")
        if result.error is not None and result.blocked_by is None:
            self.console.print(f"[red]✗[/] {step.stage:9}{step.subject}\n    {escape(result.error)}")
        elif result.record is not None and not result.reused and step.stage != "judge":
            self.console.print(f"[green]✓[/] {step.stage:9}{step.subject}  [dim]{measured(result)}[/]", highlight=False)


def measured(result: StepResult) -> str:
    record = result.record
    if record is None:
        return ""
    size = sum(blob.size_bytes for blob in record.outputs.values())
    memory = f", {record.peak_rss_bytes / 2**30:.1f} GiB peak" if record.peak_rss_bytes else ""
    return f"{record.duration_s:.1f} s, {size / 1e6:.1f} MB{memory}"


def show_result(console: Console, graph: Graph, result: BuildResult) -> None:
    """What was built or reused, what ships, what does not and why, and where to look."""
    built = sum(step.built for step in result.steps.values())
    failed = sum(step.error is not None for step in result.steps.values())
    reused = len(result.steps) - built - failed
    nothing = built == failed == 0 and all(model.reused for model in result.models)
    head = "Nothing to build: everything is up to date." if nothing else f"{built} steps built."
    console.print(f"\n{head} {reused} reused, {failed} failed. {sharing(graph)}")
    for model in result.models:
        if model.error is not None:
            console.print(f"[red]✗ {model.model.name}[/]\n    {escape(model.error)}")
            continue
        console.print(f"\n[bold]{model.model.name}[/]  {model.manifest_digest}")
        console.print(f"  ships {len(model.shipped)} profiles")
        for row, why in sorted(model.left_out.items()):
            console.print(f"  [yellow]not shipped[/] {row}: {escape('; '.join(why))}")
        for note in model.notes:
            console.print(f"  [yellow]note[/] {escape(note)}")
        for image in model.images:
            where = "in Docker" if image.loaded else f"only as files: {image.not_loaded_because}"
            console.print(f"  image {escape(describe(image))}\n  {escape(where)}")
        console.print(f"  {model.folder}/report.html")
