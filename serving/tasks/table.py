"""The one table of tasks: what there is for each is found through its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

import msgspec

from serving.tasks import clip, embed, rerank
from serving.tasks.base import Spec, Task

TASKS: Mapping[str, Task[Any, Any]] = {"embed": embed.TASK, "rerank": rerank.TASK, "clip": clip.TASK}

_DECODER: msgspec.json.Decoder[Spec] = msgspec.json.Decoder(Union[tuple(task.spec for task in TASKS.values())])  # noqa: UP007


def load_spec(data: bytes) -> Spec:
    """Read task.json of any task. Raises msgspec.ValidationError or msgspec.DecodeError."""
    return _DECODER.decode(data)
