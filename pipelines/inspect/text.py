"""What a person sees of a release before pulling any of it: profiles, sizes, figures of the gate, images. Pure text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pipelines.image.package import SHARED
from pipelines.inspect.resolve import Found
from pipelines.publish.to_registry import image_tag
from pipelines.release.document import Figure, Figures, Published
from serving.contract.profile import Profile

# Figures of the gate that tell most, in the table; --json has all.
TELLING = ("cosine_mean", "cosine_min", "score_error", "kendall_tau", "ndcg_drop", "top1_drop", "speed_ratio")
NUM_FIGURES = 4


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as what is in them; numbers to the right."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    numeric = [all(row[n][:1].isdigit() or not row[n] for row in rows[1:]) for n in range(len(widths))]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in rows
    ]


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def engine_bytes(profile: Profile) -> int:
    return sum(file.size_bytes for file in profile.files if file.path not in SHARED)


def total_bytes(release: Published) -> int:
    return sum(file.size_bytes for file in release.files.values())


def figures(verdict: Figures | None) -> str:
    """ "cosine_mean 0.99981 (0.995)": a figure and what it had to reach."""
    if verdict is None:
        return ""
    measured = {check.name: check for check in verdict.checks if check.value is not None}
    telling = [measured[name] for name in TELLING if name in measured]
    return ", ".join(_figure(check) for check in (telling or list(measured.values()))[:NUM_FIGURES])


def _figure(check: Figure) -> str:
    return f"{check.name} {check.value:.5g}" + (f" ({check.threshold:g})" if check.threshold is not None else "")


def inspect_text(found: Found) -> str:
    """What `enginery inspect` prints."""
    release, document = found.release, found.release.document
    profiles = release.manifest.profiles
    lines = [
        f"{document.model} {document.release}",
        f"  release   {release.digest}",
        f"  manifest  {document.manifest}",
    ]
    if found.entry is not None:
        where = f"number {found.entry.sequence} of {found.num_releases} remembered"
        lines.append(f"  published {found.entry.published_at}, {where}")
    if found.runtime is not None:
        lines.append(f"  this is its image for the runtime {found.runtime}")
    lines += [
        f"  {len(profiles)} profiles, {len(release.files)} files, {megabytes(total_bytes(release))} in all",
        "",
        *table([("profile", "backend", "engine", "GPU memory", "gate (threshold)"), *map(_row(release), profiles)]),
    ]
    if document.images:
        lines += ["", "images"]
        named = [(image_tag("TAG", i.runtime, i.kind), megabytes(i.size_bytes), i.digest) for i in document.images]
        lines += [f"  {line}" for line in table([("tag", "size", "digest"), *named])]
    if document.left_out:
        lines += ["", "not shipped"]
        lines += [f"  {row}: {'; '.join(why)}" for row, why in sorted(document.left_out.items())]
    if found.repository is not None:
        lines += ["", f"slim images fetch from it with NIM_REPOSITORY_OVERRIDE={found.repository}"]
    return "\n".join(lines)


def _row(release: Published) -> Any:
    def row(profile: Profile) -> tuple[str, ...]:
        floor = profile.tags.get("min_vram_per_device_gb", "")
        return (
            profile.name,
            profile.backend,
            megabytes(engine_bytes(profile)),
            f"{floor} GB" if floor else "",
            figures(release.document.verdicts.get(profile.name)),
        )

    return row


def inspect_json(found: Found) -> dict[str, Any]:
    """The same, and all figures, for programs."""
    release = found.release
    return {
        "reference": found.reference,
        "digest": release.digest,
        "published": msgspec.to_builtins(found.entry),
        "runtime": found.runtime,
        "repository": found.repository,
        "size_bytes": total_bytes(release),
        **msgspec.to_builtins(release.document),
        "profiles": list(_profiles(release)),
    }


def _profiles(release: Published) -> Iterable[dict[str, Any]]:
    for profile in release.manifest.profiles:
        yield {
            "name": profile.name,
            "id": profile.id,
            "digest": profile.digest,
            "tags": dict(profile.tags),
            "engine_bytes": engine_bytes(profile),
            "files": {f.path: {"checksum": f.checksum, "size_bytes": f.size_bytes} for f in profile.files},
        }
