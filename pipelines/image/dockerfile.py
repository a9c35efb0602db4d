"""Read the Dockerfiles of containers/: the few instructions that can be carried out without Docker."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ImageError

_DURATION = re.compile(r"(\d+)(s|m)")
_NANOSECONDS = {"s": 10**9, "m": 60 * 10**9}


@dataclass(frozen=True, kw_only=True)
class Copy:
    """One COPY: a folder of the context, and where its content goes."""

    source: str  # "lib/cpu"
    target: str  # "opt/enginery/lib"


@dataclass(frozen=True, kw_only=True)
class Dockerfile:
    """A Dockerfile that only copies and sets: each COPY is a layer, the rest is the image's config.

    There is no RUN on purpose: what runs at build time makes bytes that depend on the machine and the day.
    """

    copies: tuple[Copy, ...]
    settings: Mapping[str, Any]  # as in an image's config: {"Env": [...], "User": "1000:1000", …}

    def over(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """This file's settings over a base image's, by the rules of `docker build`."""
        merged = {k: v for k, v in base.items() if k in KEPT}
        for key, value in self.settings.items():
            if key == "Env":
                names = dict(pair.split("=", 1) for pair in [*merged.get("Env", []), *value])
                merged["Env"] = [f"{name}={text}" for name, text in names.items()]
            elif isinstance(value, dict) and key != "Healthcheck":
                merged[key] = {**(merged.get(key) or {}), **value}
            else:
                merged[key] = value
        if "Entrypoint" in self.settings and "Cmd" not in self.settings:
            merged.pop("Cmd", None)  # a new entrypoint drops the base's command
        return merged


# What is kept of an image's config: the rest (Hostname, Image, AttachStdin, …) describes the container that built it.
KEPT = (
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Labels",
    "StopSignal",
    "User",
    "Volumes",
    "WorkingDir",
)


def read(path: Path) -> Dockerfile:
    """Read a Dockerfile; raises ImageError with every line that is not understood."""
    copies: list[Copy] = []
    settings: dict[str, Any] = {}
    problems: list[str] = []
    for number, line in _instructions(path.read_text()):
        keyword, _, rest = line.partition(" ")
        try:
            if keyword.upper() == "COPY":
                source, target = shlex.split(rest)
                copies.append(Copy(source=source.strip("/"), target=target.strip("/")))
            elif keyword.upper() not in ("ARG", "FROM"):
                _SETTERS[keyword.upper()](settings, rest)
        except (KeyError, ValueError):
            known = ", ".join(("FROM", "ARG", "COPY FOLDER/ FOLDER/", *_SETTERS))
            problems.append(f"  line {number}: {line!r} is not one of: {known}")
    if problems:
        raise ImageError("\n".join([f"{path}:", *problems]))
    return Dockerfile(copies=tuple(copies), settings=settings)


def _instructions(text: str) -> list[tuple[int, str]]:
    """Lines with their continuations joined, and the number of the first."""
    found: list[tuple[int, str]] = []
    pending, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        start = start if pending else number
        pending += stripped.removesuffix("\\")
        if not stripped.endswith("\\"):
            found.append((start, pending))
            pending = ""
    return found


def _pairs(rest: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(rest))


def _env(settings: dict[str, Any], rest: str) -> None:
    settings["Env"] = [*settings.get("Env", []), *(f"{name}={value}" for name, value in _pairs(rest).items())]


def _labels(settings: dict[str, Any], rest: str) -> None:
    settings["Labels"] = {**settings.get("Labels", {}), **_pairs(rest)}


def _ports(settings: dict[str, Any], rest: str) -> None:
    ports: dict[str, Any] = {port if "/" in port else f"{port}/tcp": {} for port in rest.split()}
    settings["ExposedPorts"] = {**settings.get("ExposedPorts", {}), **ports}


def _healthcheck(settings: dict[str, Any], rest: str) -> None:
    options, _, command = rest.partition("CMD ")
    check: dict[str, Any] = {"Test": ["CMD", *json.loads(command)]}
    for name, value in (word.removeprefix("--").split("=", 1) for word in options.split()):
        if name == "retries":
            check["Retries"] = int(value)
        else:
            amount, unit = _DURATION.fullmatch(value).groups()  # type: ignore[union-attr]
            key = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod"}[name]
            check[key] = int(amount) * _NANOSECONDS[unit]
    settings["Healthcheck"] = check


def _text(key: str) -> Callable[[dict[str, Any], str], None]:
    return lambda settings, rest: settings.__setitem__(key, rest)


def _words(key: str) -> Callable[[dict[str, Any], str], None]:
    return lambda settings, rest: settings.__setitem__(key, json.loads(rest))


_SETTERS: Mapping[str, Callable[[dict[str, Any], str], None]] = {
    "ENV": _env,
    "LABEL": _labels,
    "EXPOSE": _ports,
    "HEALTHCHECK": _healthcheck,
    "USER": _text("User"),
    "WORKDIR": _text("WorkingDir"),
    "STOPSIGNAL": _text("StopSignal"),
    "ENTRYPOINT": _words("Entrypoint"),
    "CMD": _words("Cmd"),
}
