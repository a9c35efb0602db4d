"""One class per way the server fails before it serves; each owns its exit code. HTTP statuses live in serving.api."""

from __future__ import annotations

from collections.abc import Sequence


class ServingError(Exception):
    """Something a person can act on. The message says what, where, and the remedy."""

    exit_code = 1


class _Listed(ServingError):
    """An error that carries every problem at once, each with its place."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        super().__init__("\n".join([f"{where}:", *(f"  {problem}" for problem in self.problems)]))


class SettingsError(_Listed):
    """Environment variables hold values that the server cannot use."""

    exit_code = 2


class ManifestError(_Listed):
    """model_manifest.yaml is missing, malformed, or does not match its own digests."""

    exit_code = 20


class NoProfile(ServingError):
    """No profile of the manifest can run on this machine; the message lists each with its refusal."""

    exit_code = 21

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "\n".join(["No compatible profiles found. Each profile and why not:", *(f"  {p}" for p in self.problems)])
        )


class WantedProfileError(ServingError):
    """The profile that a person asked for is unknown, ambiguous, or refused by this machine."""

    exit_code = 22


class CacheError(_Listed):
    """Files of a profile are missing, short, or have another digest than the manifest says."""

    exit_code = 23


class BackendError(ServingError):
    """An engine cannot be loaded or run."""

    exit_code = 24


class ProofFailed(ServingError):
    """A loaded engine does not reproduce its golden outputs."""

    exit_code = 25


class StoreWriteError(ServingError):
    """Files could not be written where a person asked for them."""

    exit_code = 26
