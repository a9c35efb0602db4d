"""What differs between two releases: profiles, their bytes and tags, what the gate measured, images. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.image.package import SHARED
from pipelines.inspect.summary import engine_bytes, total_bytes
from pipelines.release.document import ImageFacts, Published
from serving.contract.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Change:
    """A profile that both releases have."""

    name: str
    engine: bool  # other bytes
    shared: tuple[str, ...]  # which of tokenizer.json, task.json, proof.json have other bytes
    tags: Mapping[str, tuple[str | None, str | None]]
    engine_bytes: tuple[int, int]
    metrics: Mapping[str, tuple[float | None, float | None]]
    proof_min_cosine: tuple[float, float]

    @property
    def same(self) -> bool:
        first, second = self.proof_min_cosine
        return not (self.engine or self.shared or self.tags or self.metrics) and first == second


@dataclass(frozen=True, kw_only=True)
class Diff:
    """From the first release to the second."""

    models: tuple[str, str]
    releases: tuple[str, str]
    digests: tuple[str, str]
    manifests: tuple[str, str]
    added: Mapping[str, int]  # profile -> bytes of its engines
    removed: Mapping[str, str]  # profile -> why, as the second release says
    changed: tuple[Change, ...]
    num_same: int
    versions: Mapping[str, tuple[str | None, str | None]]
    images: Mapping[str, tuple[str | None, str | None]]  # "cpu-slim" -> digests
    total_bytes: tuple[int, int]
    new_bytes: int  # of files that only the second has: what a mirror of the first must fetch
    left_out: Mapping[str, tuple[str, str]]  # rows that ship in neither, with other reasons

    @property
    def same(self) -> bool:
        return self.digests[0] == self.digests[1]

    def json(self) -> dict[str, Any]:
        return {"same": self.same, **asdict(self)}


def diff(first: Published, second: Published) -> Diff:
    old, new = ({p.name: p for p in release.manifest.profiles} for release in (first, second))
    both = [_change(name, first, second, old[name], new[name]) for name in sorted(old.keys() & new.keys())]
    before, after = first.document, second.document
    reasons = {row: "; ".join(why) for row, why in after.left_out.items()}
    earlier = {row: "; ".join(why) for row, why in before.left_out.items()}
    return Diff(
        models=(before.model, after.model),
        releases=(before.release, after.release),
        digests=(first.digest, second.digest),
        manifests=(before.manifest, after.manifest),
        added={name: engine_bytes(new[name]) for name in sorted(new.keys() - old.keys())},
        removed={name: reasons.get(name, "its row is no longer built") for name in sorted(old.keys() - new.keys())},
        changed=tuple(change for change in both if not change.same),
        num_same=sum(change.same for change in both),
        versions=_pairs(before.versions, after.versions),
        images=_pairs(_images(before.images), _images(after.images)),
        total_bytes=(total_bytes(first), total_bytes(second)),
        new_bytes=sum(f.size_bytes for uri, f in second.files.items() if uri not in first.files),
        left_out={
            row: (earlier[row], reasons[row])
            for row in sorted(earlier.keys() & reasons.keys())
            if earlier[row] != reasons[row]
        },
    )


def _change(name: str, first: Published, second: Published, old: Profile, new: Profile) -> Change:
    bytes_of = [{f.path: f.checksum for f in profile.files} for profile in (old, new)]
    engines = [{path: c for path, c in files.items() if path not in SHARED} for files in bytes_of]
    measured = [
        {check.name: check.value for check in verdict.checks} if (verdict := r.document.verdicts.get(name)) else {}
        for r in (first, second)
    ]
    return Change(
        name=name,
        engine=engines[0] != engines[1],
        shared=tuple(path for path in SHARED if bytes_of[0].get(path) != bytes_of[1].get(path)),
        tags=_pairs(old.tags, new.tags),
        engine_bytes=(engine_bytes(old), engine_bytes(new)),
        metrics=_pairs(*measured),
        proof_min_cosine=(old.proof_min_cosine, new.proof_min_cosine),
    )


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted(old.keys() | new.keys())
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _images(images: tuple[ImageFacts, ...]) -> dict[str, str]:
    return {f"{image.runtime}{'-slim' if image.kind == 'slim' else ''}": image.digest for image in images}
