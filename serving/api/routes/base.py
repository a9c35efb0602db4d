"""What a route of the engine is, and the row by which a task's routes are found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic

import msgspec

from serving.api.documents.schema import Schema
from serving.api.state import Call, Response, Service
from serving.tasks.base import SpecT
from serving.tasks.text import InputType


@dataclass(frozen=True, kw_only=True)
class Post(Generic[SpecT]):
    """One route: how it is answered, and what its document says."""

    path: str  # "/v1/embeddings"
    answer: Callable[[Call, Service[SpecT]], Awaitable[Response]]  # raises Problem, and what errors.problem knows
    operation: str  # OpenAPI's operationId
    summary: str
    request: type[msgspec.Struct]  # the form of its body
    narrow: Callable[[Schema, SpecT | None], None]  # that form's schema, to what the model takes; None: while it loads
    example: Callable[[str], Schema]  # the model's name -> a body that this server answers
    answers: Schema  # the form of its answer


@dataclass(frozen=True, kw_only=True)
class TaskRoutes(Generic[SpecT]):
    """One row of the table (serving.api.routes.table)."""

    posts: tuple[Post[SpecT], ...]
    endings: Mapping[str, InputType] = field(default_factory=dict)  # of the model's name: they say what texts are
