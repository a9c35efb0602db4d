"""Read and write model_manifest.yaml (NIM's schema 2.0): the only module that knows the file's form."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from serving.contract import strict_yaml
from serving.contract.form import Form
from serving.contract.profile import Profile, ProfileFile
from serving.errors import ManifestError

SOURCE = "model_manifest.yaml"
SCHEMA_VERSION = "2.0"  # the NIM operator reads any version with a 2 in it as this form, so never write "1.2"
_VERSIONS = ("2.0", "2.0.0")
_CHECKSUM = re.compile(r"blake3:[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # NVIDIA's own are 64 hex digits or UUIDs; foreign ids are opaque
_TAG = re.compile(r"[A-Za-z0-9_.-]+")  # a ':' or '|' here would let two sets of tags share one id
_SIZE = re.compile(r"0|[1-9][0-9]{0,14}")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
NO_SIZE = -1  # NVIDIA's manifests give none; ours always do


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one image offers."""

    model: str  # "all-minilm-l6-v2"
    release: str  # "0.1.0"
    profiles: tuple[Profile, ...]


def profile_id(tags: Mapping[str, str]) -> str:
    """NIM's profile id: BLAKE3 of the sorted tags. It names a choice, not bytes; content_digest pins those."""
    return blake3(description(tags).encode()).hexdigest()


def description(tags: Mapping[str, str]) -> str:
    """The text that NIM hashes and shows: "backend:onnx|model_type:onnx|precision:fp16"."""
    return "|".join(f"{key}:{value}" for key, value in sorted(tags.items(), key=lambda tag: tag[0].encode()))


def content_digest(profile: Profile) -> str:
    """SHA-256 over the canonical JSON of what a profile promises: name, tags, proof, and each file's bytes by checksum.

    URIs are left out: a mirror may hold the same bytes elsewhere.
    """
    promise = {
        "name": profile.name,
        "tags": dict(profile.tags),
        "proof_min_cosine": repr(float(profile.proof_min_cosine)),
        "files": {file.path: [file.checksum, file.size_bytes] for file in profile.files},
    }
    canonical = json.dumps(promise, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def read(path: Path) -> Manifest:
    """Load the manifest in a file; raises ManifestError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(strict_yaml.MAX_BYTES + 1)
    except OSError as error:
        remedy = "mount the manifest there or set NIM_MANIFEST_PATH"
        raise ManifestError(str(path), [f"cannot be read: {error.strerror}; {remedy}"]) from error
    return load(data, source=str(path))


def load(data: bytes | str, *, source: str = SOURCE) -> Manifest:
    """Parse a manifest; raises ManifestError that lists everything wrong with it."""
    form = Form()
    top = form.mapping(
        strict_yaml.load(data, source),
        "",
        {"schema_version", "profile_selection_criteria", "model", "release", "profiles"},
    )
    version = form.text(top, "schema_version", "", default=None)
    if version and version not in _VERSIONS:
        form.problems.append(f"schema_version: {version!r} is not supported; this server reads {SCHEMA_VERSION!r}")
    nodes = top.get("profiles", [])
    if not isinstance(nodes, list) or not nodes:
        form.problems.append("profiles: is not a list with at least one profile")
        nodes = []
    profiles = tuple(_profile(form, node, f"profiles[{i}]") for i, node in enumerate(nodes))
    for what, values in (("id", [p.id for p in profiles]), ("name", [p.name for p in profiles])):
        form.problems += [
            f"profiles: the {what} {v!r} is given {n} times" for v, n in Counter(values).items() if v and n > 1
        ]
    manifest = Manifest(
        model=form.text(top, "model", "", default=""),
        release=form.text(top, "release", "", default=""),
        profiles=profiles,
    )
    if form.problems:
        raise ManifestError(source, form.problems)
    return manifest


def dump(manifest: Manifest) -> bytes:
    """Canonical bytes: fixed key order, profiles by name, every value a quoted string, digests filled in.

    The bytes are loaded again before they are returned, so what cannot be read is never written; raises ManifestError.
    """
    profiles = sorted(manifest.profiles, key=lambda profile: profile.name)
    wrong = [
        f"{p.name}: digest {p.digest} does not match its content"
        for p in profiles
        if p.digest not in ("", content_digest(p))
    ]
    if wrong:
        raise ManifestError(SOURCE, wrong)
    tree = {
        "schema_version": SCHEMA_VERSION,
        "profile_selection_criteria": "auto",
        "model": manifest.model,
        "release": manifest.release,
        "profiles": [_tree(profile) for profile in profiles],
    }
    data = strict_yaml.dump(tree)
    load(data)
    return data


def _tree(profile: Profile) -> dict[str, Any]:
    files = {
        file.path: {"uri": file.uri, "checksum": file.checksum, "size_bytes": str(file.size_bytes)}
        for file in sorted(profile.files, key=lambda file: file.path)
    }
    return {
        "id": profile.id,
        "name": profile.name,
        "digest": content_digest(profile),
        "tags": dict(sorted(profile.tags.items())),
        "proof": {"min_cosine": repr(float(profile.proof_min_cosine))},
        "workspace": {"files": files},
    }


def _profile(form: Form, node: object, at: str) -> Profile:
    before = len(form.problems)
    fields = form.mapping(node, at, {"id", "name", "digest", "tags", "proof", "workspace"})
    identity = form.text(fields, "id", at, pattern=_ID, form="an id such as 64 hex digits")
    tags = form.mapping(fields.get("tags"), f"{at}.tags")
    tags = {key: form.text(tags, key, f"{at}.tags") for key in tags}
    form.problems += [
        f"{at}.tags: {key!r} is no tag name; use letters, digits and _" for key in tags if not _TAG.fullmatch(key)
    ]
    workspace = form.mapping(fields.get("workspace"), f"{at}.workspace", {"files"})
    files = form.mapping(workspace.get("files"), f"{at}.workspace.files")
    proof = form.mapping(fields.get("proof", {}), f"{at}.proof", {"min_cosine"})
    profile = Profile(
        id=identity,
        name=form.text(fields, "name", at, default=description(tags)),
        tags=tags,
        files=tuple(_file(form, path, node, f"{at}.workspace.files[{path!r}]") for path, node in sorted(files.items())),
        # Nothing serves unproved: a profile that gives no threshold must match its golden outputs exactly.
        proof_min_cosine=_cosine(form, form.text(proof, "min_cosine", f"{at}.proof", default="1.0"), at),
        digest=form.text(
            fields, "digest", at, default="", pattern=_DIGEST, form="'sha256:' and 64 lower-case hex digits"
        ),
    )
    twins = Counter(unicodedata.normalize("NFKC", file.path).casefold() for file in profile.files)
    form.problems += [
        f"{at}.workspace.files: {n} names differ only in case or Unicode form: {t!r}" for t, n in twins.items() if n > 1
    ]
    if len(form.problems) == before and profile.digest not in ("", content_digest(profile)):
        form.problems.append(
            f"{at} ({profile.name}): its content hashes to {content_digest(profile)}, not to the digest beside it; "
            "it was changed after it was packaged: restore it, or drop the key 'digest' to vouch for it yourself"
        )
    return profile


def _file(form: Form, path: str, node: object, at: str) -> ProfileFile:
    fields = form.mapping(node, at, {"uri", "checksum", "size_bytes"})
    uri = form.text(fields, "uri", at)
    form.problems += [f"{at}: {wrong}" for wrong in _unsafe(path)]
    if "uri" in fields and not _SCHEME.match(uri):
        form.problems += [f"{at}.uri: {wrong}" for wrong in _unsafe(uri)]
    size = form.text(fields, "size_bytes", at, default=str(NO_SIZE), pattern=_SIZE, form="a number of bytes")
    checksum = form.text(fields, "checksum", at, pattern=_CHECKSUM, form="'blake3:' and 64 lower-case hex digits")
    return ProfileFile(
        path=path, uri=uri, checksum=checksum, size_bytes=int(size) if _SIZE.fullmatch(size) else NO_SIZE
    )


def _unsafe(path: str) -> list[str]:
    """Why a relative path must not be joined to a folder; empty if it may."""
    segments = path.split("/")
    rules = {
        "is absolute; give it relative to the repository": path.startswith("/"),
        "has an empty, '.' or '..' segment": any(s in ("", ".", "..") for s in segments[path.startswith("/") :]),
        "holds a backslash, a colon or a character that cannot be printed": bool(set(path) & set("\\:"))
        or not path.isprintable(),
        "is not in Unicode's NFC form": path != unicodedata.normalize("NFC", path),
    }
    return [f"{path!r} {why}" for why, broken in rules.items() if broken]


def _cosine(form: Form, text: str, at: str) -> float:
    value = float(text) if re.fullmatch(r"[0-9]\.[0-9]{1,17}", text) else -1.0
    if not 0 < value <= 1:
        form.problems.append(f"{at}.proof.min_cosine: {text!r} is not a decimal such as '0.98', above 0 and at most 1")
    return value
