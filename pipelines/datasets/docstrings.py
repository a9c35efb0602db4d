"""Real texts that every machine has: the docstrings of Python's standard library, in three disjoint sets."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ExportError
from pipelines.stage import StageRequest, StageResult

# Written out rather than walked: distributions drop some modules (tests, idlelib, tkinter) and add their own.
_NAMES = """
_collections_abc _threading_local _weakrefset abc argparse ast asyncio base64 bdb bisect bz2 calendar cmd code
codecs collections colorsys compileall concurrent configparser contextlib copy copyreg csv dataclasses datetime
decimal difflib dis doctest email enum filecmp fileinput fnmatch fractions ftplib functools getopt getpass
gettext glob graphlib gzip hashlib heapq hmac html http imaplib inspect io ipaddress json linecache locale
logging lzma mailbox mimetypes netrc ntpath numbers operator optparse os pathlib pdb pickle pkgutil plistlib
poplib posixpath pprint profile pstats py_compile pyclbr queue quopri random re reprlib runpy sched secrets
selectors shelve shlex shutil signal site smtplib socket socketserver ssl statistics string subprocess symtable
tabnanny tarfile tempfile textwrap threading timeit tokenize trace traceback tracemalloc types typing urllib
uuid warnings wave weakref webbrowser wsgiref xmlrpc zipapp zipfile zipimport zoneinfo
"""
MODULES = tuple(_NAMES.split())

NUM_RETRIEVAL, NUM_GOLDEN, NUM_CALIBRATION = 512, 320, 128
LEAST_RETRIEVAL, LEAST_GOLDEN, LEAST_CALIBRATION = 500, 256, 64
LONG_WORDS = 480  # more than 512 tokens of any common vocabulary: docstrings are full of identifiers
# Golden texts are dealt from these bands in turn, so that any first N of them are of mixed length.
BANDS = ((3, 8), (9, 20), (21, 60), (61, 150), (151, 400), (401, 10_000))
SENTENCE_END = re.compile(r"(?<=[a-z0-9)\]'\"`])[.:](?=\s|$)")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The three sets. No text of one is a text of another."""

    golden: tuple[str, ...]
    calibration: tuple[str, ...]
    queries: tuple[str, ...]  # a summary line
    passages: tuple[str, ...]  # the rest of the same docstring: passages[i] answers queries[i]


@dataclass(frozen=True, kw_only=True)
class Docstring:
    """One docstring: its module, and its text as the author laid it out."""

    module: str  # "json/decoder.py"
    text: str

    @property
    def bucket(self) -> int:
        """0 … 15, from the text alone: which set it belongs to."""
        return hashlib.sha256(self.text.encode()).digest()[0] % 16


def run(request: StageRequest) -> StageResult:
    """The stage: texts.json."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    sets = split(docstrings(stdlib))
    path = request.output_dir / "texts.json"
    path.write_bytes(dump(sets, platform.python_version()))
    return StageResult(
        outputs={"texts.json": path},
        facts={
            "num_golden": len(sets.golden),
            "num_calibration": len(sets.calibration),
            "num_retrieval": len(sets.queries),
        },
    )


def docstrings(stdlib: Path, modules: Sequence[str] = MODULES) -> list[Docstring]:
    """Every distinct docstring of the modules, in the order of files and lines. Absent modules are passed over."""
    found: dict[str, Docstring] = {}
    for name in sorted(modules):
        for path in _sources(stdlib, name):
            relative = path.relative_to(stdlib).as_posix()
            for text in docstrings_of(path.read_bytes()):
                found.setdefault(_flat(text).casefold(), Docstring(module=relative, text=text))
    return list(found.values())


def split(found: Iterable[Docstring]) -> Texts:
    """Deal docstrings into the sets by a hash of their text. Raises ExportError when a set comes out too small."""
    everything = sorted(found, key=lambda d: _order(d.text))
    labelled = list(pairs([d for d in everything if d.bucket < 9]))[:NUM_RETRIEVAL]
    queries, passages = tuple(q for q, _ in labelled), tuple(p for _, p in labelled)
    taken = {*queries, *passages}
    golden = _mixed(_golden([d for d in everything if 9 <= d.bucket < 13]), taken)[:NUM_GOLDEN]
    taken.update(golden)
    calibration = _mixed((_flat(d.text) for d in everything if d.bucket >= 13), taken)[:NUM_CALIBRATION]
    problems = [
        f"{name}: {have} texts, at least {least} are needed"
        for name, have, least in (
            ("retrieval", len(queries), LEAST_RETRIEVAL),
            ("golden", len(golden), LEAST_GOLDEN),
            ("calibration", len(calibration), LEAST_CALIBRATION),
        )
        if have < least
    ]
    if problems:
        remedy = "the sources of the Python standard library are incomplete here; install a full CPython"
        raise ExportError("\n".join(["texts:", *(f"  {p}" for p in problems), f"  {remedy}"]))
    return Texts(golden=tuple(golden), calibration=tuple(calibration), queries=queries, passages=passages)


def dump(texts: Texts, python: str) -> bytes:
    """Canonical texts.json."""
    content = {
        "python": python,
        "golden": texts.golden,
        "calibration": texts.calibration,
        "retrieval": {
            "queries": texts.queries,
            "passages": texts.passages,
            "relevant": [[i] for i in range(len(texts.queries))],
        },
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False, indent=0).encode()


def _sources(stdlib: Path, name: str) -> list[Path]:
    module = stdlib / f"{name}.py"
    if module.is_file():
        return [module]
    files = (stdlib / name).rglob("*.py")
    return sorted(f for f in files if not {"test", "tests"} & set(f.relative_to(stdlib).parts))


def docstrings_of(source: bytes) -> Iterator[str]:
    """Docstrings of a module, its classes and functions. Function bodies are not searched: what is there is private."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and text.strip():
                yield text
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending.extend(reversed(list(ast.iter_child_nodes(node))))


def pairs(found: Sequence[Docstring]) -> Iterator[tuple[str, str]]:
    """(query, passage) with every query and every passage once, and no query readable in its passage."""
    seen: set[str] = set()
    for docstring in found:
        summary, _, rest = docstring.text.partition("\n\n")
        query, passage = _summary(summary), _flat(rest)
        keys = {query.casefold(), passage.casefold()}
        enough = 3 <= len(query.split()) <= 40 and len(passage.split()) >= 12
        if enough and query.casefold() not in passage.casefold() and not keys & seen:
            seen |= keys
            yield query, passage


def _golden(found: Sequence[Docstring]) -> Iterator[str]:
    """Docstrings as they are, and then, for long texts, those of one module run together."""
    yield from (_flat(d.text) for d in found)
    by_module: dict[str, list[str]] = {}
    for docstring in found:
        by_module.setdefault(docstring.module, []).append(_flat(docstring.text))
    for module in sorted(by_module):
        words = " ".join(by_module[module]).split()
        if len(words) >= LONG_WORDS:
            yield " ".join(words[: LONG_WORDS + 2 * len(module)])  # not all cut at one length


def _mixed(texts: Iterable[str], taken: set[str]) -> list[str]:
    """Texts not taken yet, each once, dealt from the bands in turn: short, middling and long ones alternate."""
    bands: list[list[str]] = [[] for _ in BANDS]
    for text in dict.fromkeys(texts):
        num_words = len(text.split())
        for band, (least, most) in zip(bands, BANDS, strict=True):
            if least <= num_words <= most and text not in taken:
                band.append(text)
    longest = max(map(len, bands))
    return [band[i] for i in range(longest) for band in bands if i < len(band)]


def _summary(paragraph: str) -> str:
    """The first sentence of a summary paragraph, without a leading call signature such as `f(x) -> y`."""
    text = re.sub(r"^[\w.]+\([^)]*\)\s*(->\s*\S+)?\s*[-:]*\s*", "", _flat(paragraph))
    return SENTENCE_END.split(text, maxsplit=1)[0].strip(" .:-")


def _flat(text: str) -> str:
    return " ".join(text.split())


def _order(text: str) -> str:
    return hashlib.sha256(b"order:" + text.encode()).hexdigest()
