"""Settings of a server over a manifest root, and its boot in this process."""

from __future__ import annotations

from pathlib import Path

from serving.api.state import Service
from serving.choice import hardware
from serving.contract import manifest
from serving.contract.profile import Profile
from serving.settings.settings import Settings
from serving.start import boot
from serving.watch.metrics import Metrics
from tests.support.profiles import GENERIC, SECOND, add_profile, write_manifest
from tests.support.tiny_models import Model

MACHINE = hardware.detect(cpu_only=True)


def settings(root: Path, wanted: str | None = None) -> Settings:
    return Settings(
        root=root,
        manifest_path=root / "etc" / "default" / "model_manifest.yaml",
        cache_path=root / "cache",
        wanted_profile=wanted,
        cpu_only=True,
        num_threads=1,
    )


def start(root: Path, wanted: str | None = None) -> Service:
    return boot.start(settings(root, wanted), Metrics(), lambda message: None, MACHINE)


def profile(root: Path, row: str) -> Profile:
    found = manifest.read(root / "etc" / "default" / "model_manifest.yaml")
    return next(profile for profile in found.profiles if profile.name == row)


def blob(root: Path, row: str, file: str) -> Path:
    return root / profile(root, row).file(file).uri


def generic_root(folder: Path, model: Model, **without: str) -> Path:
    """A manifest with a model's generic profile alone. without: files that the profile does not list."""
    files = {name: data for name, data in model.files().items() if name not in without.values()}
    write_manifest(folder, [add_profile(folder, SECOND, GENERIC, files)])
    return folder
