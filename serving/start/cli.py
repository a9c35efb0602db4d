"""The verbs of an image besides serving: list-model-profiles, download-to-cache, create-model-store."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.cache.fetch import ensure, fetch
from serving.choice import hardware, select, wanted
from serving.choice.listing import listing_json, listing_text, startup_lines
from serving.contract import manifest
from serving.contract.profile import Machine, Profile
from serving.errors import ServingError, StoreWriteError
from serving.settings.reader import AUTOMATIC
from serving.settings.settings import Settings, load
from serving.start.places import places_of

__all__ = ["VERBS", "main", "startup_lines"]

VERBS = {  # NIM's two spellings -> ours
    "list-model-profiles": "list-model-profiles",
    "nim_list_model_profiles": "list-model-profiles",
    "download-to-cache": "download-to-cache",
    "nim_download_to_cache": "download-to-cache",
    "create-model-store": "create-model-store",
    "nim_create_model_store": "create-model-store",
}


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None, machine: Machine | None = None) -> int:
    """Run one verb and return the exit code: 0, 2 for wrong arguments, or that of the error (serving.errors)."""
    arguments = _parser().parse_args([VERBS.get(argv[0], argv[0]), *argv[1:]] if argv else argv)
    try:
        settings = load(os.environ if environ is None else environ)
        path = arguments.manifest_file or settings.manifest_path
        profiles = manifest.read(path).profiles
        machine = machine or hardware.detect(cpu_only=settings.cpu_only, visible_gpus=settings.visible_gpus)
        decisions = select.decide(profiles, machine)
        if arguments.verb == "list-model-profiles":
            as_json = arguments.json
            text = (
                json.dumps(listing_json(decisions, machine), indent=2) if as_json else listing_text(decisions, machine)
            )
            print(text)
        elif arguments.verb == "download-to-cache":
            _download_to_cache(_wanted(arguments, decisions, settings), settings)
        else:
            _create_model_store(_wanted(arguments, decisions, settings), settings, arguments.model_store)
    except ServingError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="enginery", description="The verbs of an image besides serving.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list-model-profiles", help="print each profile, and why it cannot run here")
    listing.add_argument("-m", "--manifest-file", type=Path, help="another model_manifest.yaml")
    listing.add_argument("--json", action="store_true", help="the same for programs")
    download = verbs.add_parser("download-to-cache", help="make sure that profiles' files are here and whole")
    store = verbs.add_parser("create-model-store", help="write profiles' files to a folder")
    for verb in (download, store):
        which = verb.add_mutually_exclusive_group()
        which.add_argument(
            "-p",
            "--profiles",
            "--profile",
            nargs="+",
            default=[],
            metavar="ID",
            help="ids, prefixes or names; none: the best here",
        )
        which.add_argument("--all", action="store_true", help="every profile of the manifest")
        verb.add_argument("--manifest-file", type=Path, help="another model_manifest.yaml")
    store.add_argument(
        "-m", "--model-store", type=Path, required=True, metavar="DIR", help="the folder; made if absent"
    )
    return parser


def _wanted(arguments: argparse.Namespace, decisions: Sequence[select.Decision], settings: Settings) -> list[Profile]:
    """The profiles a person named (whether or not they can run here), else the one that would be served."""
    profiles = [decision.profile for decision in decisions]
    if arguments.all:
        return profiles
    names = [name for name in arguments.profiles if name.strip().lower() not in AUTOMATIC]
    if not names and settings.wanted_profile:
        names = [settings.wanted_profile]
    if names:
        return wanted.choose_all(profiles, names)
    return wanted.by_precision(wanted.candidates(decisions, None), settings.precision)[:1]


def _download_to_cache(profiles: Sequence[Profile], settings: Settings) -> None:
    sources = ensure(profiles, places_of(settings), _say)
    for profile in profiles:
        what = f"{len(profile.files)} files, {sum(max(0, f.size_bytes) for f in profile.files) / 1e6:.1f} MB"
        where = sorted({sources[file.checksum] for file in profile.files})
        nothing = "" if any(w.startswith("downloaded") for w in where) else "; nothing to download"
        print(f"{profile.id} ({profile.name}): {what} verified, {', '.join(where)}{nothing}")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _create_model_store(profiles: Sequence[Profile], settings: Settings, folder: Path) -> None:
    """One profile goes flat into the folder; several go into a folder each, since their files share names."""
    for profile in profiles:
        target = folder if len(profiles) == 1 else folder / profile.id  # names are free text
        files = fetch(profile, places_of(settings))
        for name, data in files.items():
            _write(target / name, data)
        print(f"{profile.id} ({profile.name}): wrote {len(files)} files to {target}")


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: a reader never sees half an engine."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".enginery-") as beside:
            part = Path(beside, "part")
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    except OSError as error:
        remedy = f"name a folder that user {os.geteuid()} may write"
        raise StoreWriteError(f"{path} cannot be written: {error.strerror}; {remedy}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
