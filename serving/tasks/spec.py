"""Read and write task.json: which of the tasks a model does, and its spec."""

from __future__ import annotations

import msgspec

from serving.tasks.clip import ClipSpec
from serving.tasks.embed import EmbedSpec
from serving.tasks.rerank import RerankSpec

Spec = EmbedSpec | RerankSpec | ClipSpec


def load_spec(data: bytes) -> Spec:
    """Read task.json. Raises msgspec.ValidationError or msgspec.DecodeError."""
    spec: Spec = msgspec.json.decode(data, type=Spec)
    return spec


def dump_spec(spec: Spec) -> bytes:
    """Write task.json in canonical bytes."""
    return msgspec.json.encode(spec, order="sorted")
