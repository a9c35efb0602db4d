"""Whether a released model is still what was released: each file that its manifest names, by digest.

This is the seam for publishing: a bucket's or a registry's release is verified by a function of the same form.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines import package
from serving import manifest
from serving.errors import ManifestError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something released that is not as it was released."""

    where: str
    what: str


def verify_model(folder: Path) -> list[Problem]:
    """dist/<model>, as `enginery build` wrote it: the manifest and every file it names. Empty: intact."""
    root = folder / package.ROOT
    path = root / package.MANIFEST
    try:
        released = manifest.read(path)
    except (OSError, ValueError, ManifestError) as error:
        return [Problem(where=str(path), what=f"cannot be read ({error}); build the model again")]
    if path.read_bytes() != (folder / "model_manifest.yaml").read_bytes():
        return [Problem(where=str(path), what="is not the manifest beside it; build the model again")]
    problems = []
    for uri, checksum in sorted({f.uri: f.checksum for p in released.profiles for f in p.files}.items()):
        if "://" not in uri and not package.holds(root / uri, checksum.removeprefix("blake3:")):
            problems.append(Problem(where=str(root / uri), what=f"does not hold {checksum}; build the model again"))
    return problems
