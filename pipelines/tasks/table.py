"""The one table of the factory's tasks."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.tasks import clip, embed, rerank
from pipelines.tasks.base import Task

TASKS: Mapping[str, Task] = {"embed": embed.TASK, "rerank": rerank.TASK, "clip": clip.TASK}
