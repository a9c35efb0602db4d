"""What a release tells before any of it is pulled: sizes, the figures of the gate that tell most, all of it as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from pipelines.image.package import SHARED
from pipelines.inspect.resolve import ResolvedRelease
from pipelines.release.document import Figure, Figures, Published
from serving.contract.profile import Profile

TELLING = ("cosine_mean", "cosine_min", "score_error", "kendall_tau", "ndcg_drop", "top1_drop", "speed_ratio")
NUM_FIGURES = 4


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def engine_bytes(profile: Profile) -> int:
    return sum(file.size_bytes for file in profile.files if file.path not in SHARED)


def total_bytes(release: Published) -> int:
    return sum(file.size_bytes for file in release.files.values())


def telling_figures(figures: Figures | None) -> str:
    """ "cosine_mean 0.99981 (0.995)": a figure and what it had to reach."""
    if figures is None:
        return ""
    measured = {figure.name: figure for figure in figures.checks if figure.value is not None}
    telling = [measured[name] for name in TELLING if name in measured]
    return ", ".join(_words(figure) for figure in (telling or list(measured.values()))[:NUM_FIGURES])


def _words(figure: Figure) -> str:
    threshold = f" ({figure.threshold:g})" if figure.threshold is not None else ""
    return f"{figure.name} {figure.value:.5g}{threshold}"


def as_json(resolved: ResolvedRelease) -> dict[str, Any]:
    """What `enginery inspect --json` prints."""
    release = resolved.release
    return {
        "reference": resolved.reference,
        "digest": release.digest,
        "published": msgspec.to_builtins(resolved.entry),
        "runtime": resolved.runtime,
        "repository": resolved.repository,
        "size_bytes": total_bytes(release),
        **msgspec.to_builtins(release.document),
        "profiles": [
            {
                "name": profile.name,
                "id": profile.id,
                "digest": profile.digest,
                "tags": dict(profile.tags),
                "engine_bytes": engine_bytes(profile),
                "files": {f.path: {"checksum": f.checksum, "size_bytes": f.size_bytes} for f in profile.files},
            }
            for profile in release.manifest.profiles
        ],
    }
