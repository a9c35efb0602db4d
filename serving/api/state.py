"""What the routes answer from: how far the start has come, and the service once it is ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from serving.batching.encoders import EncoderPool
from serving.batching.lanes import Lane, Timing
from serving.contract.profile import Profile
from serving.tasks.base import SpecT


@dataclass(frozen=True, kw_only=True)
class Service(Generic[SpecT]):
    """A proved engine and everything a request needs of it."""

    spec: SpecT
    names: tuple[str, ...]  # that requests may use; the first is the one that answers carry
    model: str  # the manifest's
    release: str
    profile: Profile
    manifest_text: str
    encoders: EncoderPool[Any]  # the task's own
    lanes: Mapping[str, Lane]  # by tower
    created: int  # Unix seconds
    license_file: Path | None = None
    repository_override: str = ""


@dataclass(kw_only=True)
class State:
    """Changes while the server starts and stops."""

    message: str = "starting"  # "loading: prove", "ready", "draining"
    service: Service[Any] | None = None
    draining: bool = False
    in_flight: int = 0  # requests for the engine being answered

    @property
    def ready(self) -> bool:
        return self.service is not None and not self.draining


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may cost."""

    max_body_bytes: int = 32 * 1024 * 1024
    max_inputs: int = 2048
    max_in_flight: int = 512  # requests
    body_timeout_s: float = 30.0
    request_timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request as a route sees it: its body has been read within the limits."""

    body: bytes
    state: State
    limits: Limits
    timing: Timing = field(default_factory=Timing)  # filled by the engines as they answer


@dataclass(frozen=True, kw_only=True)
class Response:
    """What a route answers."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    num_tokens: int = 0  # these two for the metrics and the log
    num_items: int = 0
