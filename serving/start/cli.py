"""The verbs of an image besides serving: list-model-profiles, download-to-cache, create-model-store."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from serving.cache.fetch import ensure, fetch
from serving.choice import hardware, select
from serving.choice.listing import listing_json, listing_text, startup_lines
from serving.contract import manifest
from serving.contract.profile import Machine, Profile
from serving.errors import ServingError, StoreWriteError, WantedProfileError
from serving.settings import settings
from serving.settings.reader import AUTOMATIC
from serving.settings.settings import Settings
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
        found = settings.load(os.environ if environ is None else environ)
        path = arguments.manifest_file or found.manifest_path
        profiles = manifest.read(path).profiles
        machine = machine or hardware.detect(cpu_only=found.cpu_only, visible_gpus=found.visible_gpus)
        decisions = select.decide(profiles, machine)
        if arguments.verb == "list-model-profiles":
            listed = (
                json.dumps(listing_json(decisions, machine), indent=2)
                if arguments.json
                else listing_text(decisions, machine)
            )
            print(listed)
        elif arguments.verb == "download-to-cache":
            _download_to_cache(_wanted(arguments, decisions, found), found)
        else:
            _create_model_store(_wanted(arguments, decisions, found), found, arguments.model_store)
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


def _wanted(arguments: argparse.Namespace, decisions: Sequence[select.Decision], found: Settings) -> list[Profile]:
    """The profiles a person named (whether or not they can run here), else the one that would be served."""
    profiles = [decision.profile for decision in decisions]
    if arguments.all:
        return profiles
    names = [name for name in arguments.profiles if name.strip().lower() not in AUTOMATIC]
    if not names and found.wanted_profile:
        names = [found.wanted_profile]
    if not names:
        ranked = select.candidates(decisions, None)
        return sorted(ranked, key=lambda profile: profile.precision != (found.precision or profile.precision))[:1]
    chosen: dict[str, Profile] = {}
    unknown: dict[str, str] = {}
    for name in names:
        try:
            profile = select.choose(profiles, name)
            chosen[profile.id] = profile
        except WantedProfileError as error:
            unknown[name] = str(error).partition("\nAll valid profiles:")[0]
    if unknown:
        raise WantedProfileError(_unknown_words(unknown, profiles))
    return list(chosen.values())


def _unknown_words(unknown: Mapping[str, str], profiles: Sequence[Profile]) -> str:
    """NIM's words for it, by which people search; then which name is wrong and what it may have meant."""
    texts = {text: profile for profile in profiles for text in (profile.name, profile.id)}
    near = {texts[text].id for name in unknown for text in get_close_matches(name, texts, n=3)}
    listed = [f"  {p.id} ({p.name})" + ("  <- did you mean this?" if p.id in near else "") for p in profiles]
    lines = [
        "Not all of the provided profiles are supported.",
        f"Unknown profiles provided: {_set_words(unknown)}",
        f"All valid profiles: {_set_words(profile.id for profile in profiles)}",
    ]
    return "\n".join([*lines, *unknown.values(), "The same with their names:", *listed])


def _set_words(texts: Iterable[str]) -> str:
    return "{" + ", ".join(repr(text) for text in texts) + "}"


def _download_to_cache(profiles: Sequence[Profile], found: Settings) -> None:
    sources = ensure(profiles, places_of(found), _say)
    for profile in profiles:
        what = f"{len(profile.files)} files, {sum(max(0, f.size_bytes) for f in profile.files) / 1e6:.1f} MB"
        where = sorted({sources[file.checksum] for file in profile.files})
        nothing = "" if any(w.startswith("downloaded") for w in where) else "; nothing to download"
        print(f"{profile.id} ({profile.name}): {what} verified, {', '.join(where)}{nothing}")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _create_model_store(profiles: Sequence[Profile], found: Settings, folder: Path) -> None:
    """One profile goes flat into the folder; several go into a folder each, since their files share names."""
    for profile in profiles:
        target = folder if len(profiles) == 1 else folder / profile.id  # names are free text
        files = fetch(profile, places_of(found))
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
