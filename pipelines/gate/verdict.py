"""verdict.json: the gate's judgement of one engine, with a reason for everything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

SCHEMA_VERSION = 1


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One figure against one threshold."""

    name: str  # "cosine_mean"
    value: float | None  # None: was not measured
    threshold: float | None  # None: nothing is demanded
    passed: bool | None  # None: not judged
    why: str  # "mean cosine to the fp32 reference 0.9999 is at least 0.999"
    remedy: str = ""  # what helps, if it failed


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's judgement of one engine. It names the digests it judged, so that it cannot be held against others."""

    row: str
    passed: bool
    evaluated: str = msgspec.field(name="judged_on")  # "engine" or "typed-onnx"
    judged_with: str  # "onnxruntime 1.31.1"
    checks: tuple[Check, ...]
    digests: Mapping[str, str]  # file -> digest: {"engine": "sha256:…"}
    proof_min_cosine: float  # what the boot proof must reach; goes into the manifest

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it failed; empty when it passed."""
        return tuple(check.why for check in self.checks if check.passed is False)

    @property
    def remedies(self) -> tuple[str, ...]:
        """What helps, each once."""
        return tuple(dict.fromkeys(check.remedy for check in self.checks if check.passed is False and check.remedy))

    def content(self) -> dict[str, Any]:
        """What the file holds: the fields, and reasons and remedies for readers other than this program."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return {"schema_version": SCHEMA_VERSION, **fields, "reasons": self.reasons, "remedies": self.remedies}


def dump(verdict: Verdict) -> bytes:
    """Canonical bytes of verdict.json: no clock, no path; only speed figures differ between two runs."""
    text = json.dumps(verdict.content(), sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
    return text.encode() + b"\n"


def load(content: bytes) -> Verdict:
    return msgspec.json.decode(content, type=Verdict)
