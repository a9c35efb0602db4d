"""How `enginery inspect`, `explain` and `diff` show their results to a person."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from pipelines.cli.terminal import print_lines, print_table
from pipelines.inspect.diff import Change, Diff
from pipelines.inspect.explain import Explanation
from pipelines.inspect.resolve import ResolvedRelease
from pipelines.inspect.summary import engine_bytes, megabytes, telling_figures, total_bytes
from pipelines.publish.to_registry import image_tag
from serving.choice.listing import listing_text


def show_release(console: Console, resolved: ResolvedRelease) -> None:
    """Profiles with their sizes and figures, images, and the rows that do not ship."""
    release, document = resolved.release, resolved.release.document
    lines = [
        f"{document.model} {document.release}",
        f"  release   {release.digest}",
        f"  manifest  {document.manifest}",
    ]
    if (entry := resolved.entry) is not None:
        lines.append(f"  published {entry.published_at}, number {entry.sequence} of {resolved.num_releases} remembered")
    if resolved.runtime is not None:
        lines.append(f"  this is its image for the runtime {resolved.runtime}")
    profiles = release.manifest.profiles
    lines += [f"  {len(profiles)} profiles, {len(release.files)} files, {megabytes(total_bytes(release))} in all", ""]
    print_lines(console, lines)
    floors = [profile.tags.get("min_vram_per_device_gb") for profile in profiles]
    rows = [
        (
            profile.name,
            profile.backend,
            megabytes(engine_bytes(profile)),
            f"{floor} GB" if floor else "",
            telling_figures(document.verdicts.get(profile.name)),
        )
        for profile, floor in zip(profiles, floors, strict=True)
    ]
    print_table(console, ("profile", "backend", "engine", "GPU memory", "gate (threshold)"), rows)
    if document.images:
        print_lines(console, ["", "images"])
        images = [(image_tag("TAG", i.runtime, i.kind), megabytes(i.size_bytes), i.digest) for i in document.images]
        print_table(console, ("tag", "size", "digest"), images)
    if document.left_out:
        print_lines(console, ["", "not shipped"])
        print_lines(console, [f"  {row}: {'; '.join(reasons)}" for row, reasons in sorted(document.left_out.items())])
    if resolved.repository is not None:
        print_lines(console, ["", f"slim images fetch from it with NIM_REPOSITORY_OVERRIDE={resolved.repository}"])


def show_explanation(console: Console, explanation: Explanation) -> None:
    """The server's own profile list for one SKU, between what was assumed and what it would choose."""
    sku, machine, chosen = explanation.sku, explanation.machine, explanation.chosen
    assumed = [f"image {explanation.runtime}", *([f"driver {machine.driver_version}"] if machine.gpus else [])]
    choice = f"{chosen.name} ({chosen.id})" if chosen else "none: the server would not start"
    listing = listing_text(explanation.decisions, machine)
    print_lines(console, [f"ON {sku} ({', '.join(assumed)})", listing, f"CHOSEN on {sku}: {choice}"])


def show_choices(console: Console, explanations: Sequence[Explanation]) -> None:
    """What each SKU would run."""
    print_table(
        console, ("SKU", "image", "chosen profile"), [(each.sku, each.runtime, each.summary) for each in explanations]
    )
    print_lines(console, ["", "Why none of the others: enginery explain REFERENCE --gpu SKU"])


def show_diff(console: Console, diff: Diff) -> None:
    """+ added, - removed, ~ changed."""
    (old, new), (first, second) = diff.releases, diff.digests
    if diff.same:
        print_lines(console, [f"{diff.models[0]} {old}: the same release, {first}"])
        return
    lines = [f"{diff.models[0]} {old} -> {diff.models[1]} {new}", f"  {first}", f"  {second}", ""]
    lines += [f"+ {name}  {megabytes(size)}" for name, size in diff.added.items()]
    lines += [f"- {name}  {reason}" for name, reason in diff.removed.items()]
    for change in diff.changed:
        lines += [f"~ {change.name}", *(f"    {line}" for line in _change_lines(change))]
    lines += [f"~ {name}: {a or 'none'} -> {b or 'none'}" for name, (a, b) in diff.versions.items()]
    lines += [f"~ image {name}: {a or 'none'} -> {b or 'none'}" for name, (a, b) in diff.images.items()]
    lines += [f"~ not shipped {row}: {a} -> {b}" for row, (a, b) in diff.left_out.items()]
    before, after = diff.total_bytes
    lines += [
        "",
        f"{len(diff.added)} added, {len(diff.removed)} removed, {len(diff.changed)} changed, {diff.num_same} the same; "
        f"{megabytes(before)} -> {megabytes(after)}, {megabytes(diff.new_bytes)} of it new",
    ]
    print_lines(console, lines)


def _change_lines(change: Change) -> list[str]:
    (old, new), lines = change.engine_bytes, list[str]()
    if change.engine:
        size = f"{megabytes(old)} -> {megabytes(new)}" if old != new else f"as large as before ({megabytes(new)})"
        lines.append(f"engine: other bytes, {size}")
    lines += [f"{path}: other bytes" for path in change.shared]
    lines += [f"tag {name}: {a or 'none'} -> {b or 'none'}" for name, (a, b) in change.tags.items()]
    lines += [f"{name}: {_number(a)} -> {_number(b)}{_by(a, b)}" for name, (a, b) in change.metrics.items()]
    if change.proof_min_cosine[0] != change.proof_min_cosine[1]:
        lines.append(f"proof at boot: {change.proof_min_cosine[0]:g} -> {change.proof_min_cosine[1]:g}")
    return lines


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.6g}"


def _by(old: float | None, new: float | None) -> str:
    return "" if old is None or new is None else f" ({new - old:+.2g})"
