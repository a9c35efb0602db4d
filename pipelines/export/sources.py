"""Where a model comes from (a folder, a package, a hub), resolved to a local folder that is safe to read."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipelines.errors import ExportError, FetchError
from pipelines.export import s3_source

# What a model folder is made of; everything else in it (pickles, pictures, other frameworks' weights) is never read.
SUFFIXES = (".safetensors", ".json", ".txt")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def revision(source: str, base_dir: Path) -> str:
    """What changes when the model's files do: a folder's digest, a hub's commit, a bucket's etags. No download."""
    if source.startswith("hf://"):
        return source  # the matrix pins it
    if source.startswith("s3://"):
        return s3_source.revision(source, SUFFIXES)
    return digest(resolve(source, base_dir))


def resolve(source: str, base_dir: Path, wanted: str | None = None) -> Path:
    """A source as the matrix spells it -> a local folder. Raises ExportError.

    wanted: the revision the build was planned with; a bucket that has another by now is refused.

    `package://module/folder` is found without importing the package; `hf://org/name@revision` is downloaded into the
    hub client's cache, `s3://bucket/prefix` into Enginery's; anything else is a folder, relative to `base_dir`.
    """
    if source.startswith("package://"):
        folder = _package_folder(source)
    elif source.startswith("hf://"):
        folder = _hub_folder(source)
    elif source.startswith("s3://"):
        folder = s3_source.fetch(source, SUFFIXES, wanted)
    else:
        folder = (base_dir / source).resolve()
        if not folder.is_dir():
            raise ExportError(f"{source}: there is no folder {folder}; name a model folder, package://, hf:// or s3://")
    problems = refusals(folder)
    if problems:
        raise ExportError("\n".join([f"{source}:", *(f"  {problem}" for problem in problems)]))
    return folder


def refusals(folder: Path) -> list[str]:
    """Every reason why a folder is not taken as a model; empty when it may be used. Reads no weights."""
    problems = []
    everything = sorted(p for p in folder.rglob("*") if p.is_file() or p.is_symlink())
    for path in everything:
        if path.is_symlink() and not _is_inside(path, folder):
            name = path.relative_to(folder).as_posix()
            problems.append(f"{name}: is a link to a place outside the model; copy the file into the folder")
    if not any(path.suffix == ".safetensors" for path in everything):
        pickles = [path.name for path in everything if path.suffix in PICKLES]
        found = f"; {', '.join(pickles)} can run code when it is loaded and is never opened" if pickles else ""
        problems.append(f"no .safetensors weights{found}; convert the weights with safetensors.torch.save_file")
    if not (folder / "config.json").is_file():
        problems.append("config.json: missing; this is not a Transformers model folder")
    for path in folder.glob("*.json"):
        if "auto_map" in _keys(path) and not _is_built_in(path):
            problems.append(
                f"{path.name}: 'auto_map' asks to run Python code that comes with the model, which is never done; "
                "use a revision whose architecture is part of transformers"
            )
    return problems


def digest(folder: Path) -> str:
    """ "sha256:…" over the names and bytes of the files that make the model: the same wherever the folder lies."""
    total = hashlib.sha256()
    for name, path in _files(folder):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{name}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        if path.suffix in SUFFIXES and path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _package_folder(source: str) -> Path:
    module, _, inner = source.removeprefix("package://").partition("/")
    # A dotted name would import its parents to find them, and with that run the package's code.
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ExportError(f"{source}: no package '{module}' is installed here; pip install the one that carries it")
    if ".." in PurePosixPath(inner).parts:
        raise ExportError(f"{source}: '..' leads out of the package; name a folder inside it")
    folder = Path(next(iter(spec.submodule_search_locations))) / inner
    if not folder.is_dir():
        raise ExportError(f"{source}: package '{module}' is installed but has no folder '{inner}'")
    return folder


def _hub_folder(source: str) -> Path:
    match = _HUB.fullmatch(source)
    if match is None:
        raise ExportError(f"{source}: is not hf://org/name@revision")
    if match["revision"] is None:
        raise ExportError(f"{source}: names no revision, so that it could change under you; add @ and a commit id")
    # The client reads this once, at import; nothing of what is built here is told to anyone.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    try:
        patterns = [f"*{suffix}" for suffix in SUFFIXES]
        return Path(
            huggingface_hub.snapshot_download(match["repo"], revision=match["revision"], allow_patterns=patterns)
        )
    except Exception as error:  # the client raises classes of requests, httpx and its own; all mean "not to be had"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FetchError(
            f"{source}: could not be fetched from the hub ({reason}); "
            "where the hub cannot be reached, put the model's files in a folder and name that folder as the source"
        ) from error


def _is_inside(path: Path, folder: Path) -> bool:
    target = path.resolve()
    # The hub client's cache keeps files in <model>/blobs and links to them from <model>/snapshots/<revision>.
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent.resolve() / "blobs")
    return target.exists() and any(target.is_relative_to(root) for root in roots)


def _is_built_in(path: Path) -> bool:
    """The factory has code of its own for this type of model; the model's own is not run."""
    from pipelines.recipes.transformer import BIDIRECTIONAL

    return path.name == "config.json" and json.loads(path.read_bytes()).get("model_type") in BIDIRECTIONAL


def _keys(path: Path) -> set[str]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ExportError(f"{path}: is not JSON ({error})") from error
    return set(content) if isinstance(content, dict) else set()
