"""One class per way the factory fails; each owns its exit code."""

from __future__ import annotations

from collections.abc import Sequence


class EngineryError(Exception):
    """Something a person can act on. The message says what, where, and the remedy."""

    exit_code = 1
    transient = False  # whether the same thing may well succeed a minute later, with nothing changed


class MatrixError(EngineryError):
    """sku_matrix.yaml is wrong: carries every problem, each with its place."""

    exit_code = 2

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join([f"{source}:", *(f"  {problem}" for problem in self.problems)]))


class ExportError(EngineryError):
    """A model could not be fetched, read or exported."""

    exit_code = 10


class FetchError(ExportError):
    """A model could not be had from where it is kept, now."""

    transient = True


class ShardError(ExportError):
    """A graph could not be divided over GPUs."""


class QuantizeError(EngineryError):
    """A typed ONNX could not be made."""

    exit_code = 11


class CompileError(EngineryError):
    """A compiler refused a typed ONNX for a SKU."""

    exit_code = 12


class GateError(EngineryError):
    """An engine could not be measured (which is not a failed verdict)."""

    exit_code = 13


class PackageError(EngineryError):
    """No profile of a model may ship, or its parts do not fit together."""

    exit_code = 14


class ImageError(EngineryError):
    """An image could not be assembled or loaded into the engine."""

    exit_code = 15


class ImageContextOnly(ImageError):
    """No image can be made on this machine; what `docker build` needs elsewhere was written instead."""


class StoreError(EngineryError):
    """The store holds bytes that do not match their digest, or cannot be written."""

    exit_code = 16


class StageCrashed(EngineryError):
    """A stage's process died without an answer (killed, out of memory)."""

    exit_code = 17
    transient = True


class WorkerError(EngineryError):
    """A machine was asked for what it does not have: carries the reason."""

    exit_code = 18


class PublishError(EngineryError):
    """A release could not be published, read back or collected."""

    exit_code = 19


class UnreachableError(PublishError):
    """The bucket or the registry does not answer, or cannot just now; what was sent is kept."""

    transient = True


class OvertakenError(PublishError):
    """Somebody else published meanwhile: theirs stands, ours was refused."""

    exit_code = 20
