"""Read one variable of the environment as a value of its type, and collect what is wrong with each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from urllib.parse import urlsplit

from serving.contract.profile import Precision

AUTOMATIC = frozenset({"", "auto", "default"})  # what people write where they mean "choose for me"
LOG_LEVELS = {  # NIM's name -> the logging module's
    "DEFAULT": "INFO",
    "TRACE": "DEBUG",
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "WARNING": "WARNING",
    "ERROR": "ERROR",
    "CRITICAL": "CRITICAL",
}
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class Reader:
    """An unset or blank variable means the default."""

    def __init__(self, environ: Mapping[str, str], problems: Iterable[str] = ()) -> None:
        self.environ = environ
        self.problems = list(problems)

    def _named(self, names: tuple[str, ...]) -> tuple[str, str]:
        given = {name: value for name in names if (value := self.environ.get(name, "").strip())}
        if len(set(given.values())) > 1:
            both = " and ".join(f"{name}={value!r}" for name, value in given.items())
            self.problems.append(f"{both} mean the same thing and disagree; set one of them")
        return next(iter(given.items()), (names[0], ""))

    def text(self, *names: str) -> str:
        return self._named(names)[1]

    def flag(self, *names: str) -> bool:
        name, value = self._named(names)
        if value and value.lower() not in _TRUE | _FALSE:
            self.problems.append(f"{name}={value!r} is neither yes nor no; use 1 or 0")
        return value.lower() in _TRUE

    def integer(self, default: int, low: int, high: int, *names: str) -> int:
        name, value = self._named(names)
        if not value:
            return default
        # isdecimal alone would let int() read other scripts' digits.
        if not (value.isascii() and value.isdecimal()) or len(value) > 12 or not low <= int(value) <= high:
            self.problems.append(
                f"{name}={value!r} is not a whole number from {low} to {high}; the default is {default}"
            )
            return default
        return int(value)

    def seconds(self, default: float, name: str) -> float:
        value = self.text(name)
        try:
            number = float(value) if value else default
        except ValueError:
            number = float("nan")
        if not (isfinite(number) and number > 0):
            self.problems.append(f"{name}={value!r} is not a number of seconds above 0; the default is {default:g}")
            return default
        return number

    def log_level(self, name: str) -> str:
        value = self.text(name).upper() or "DEFAULT"
        if value not in LOG_LEVELS:
            self.problems.append(f"{name}={value!r} is no log level; use one of {', '.join(LOG_LEVELS)}")
        return LOG_LEVELS.get(value, "INFO")

    def uri(self, name: str) -> str | None:
        value = self.text(name)
        if value and "://" not in value:
            self.problems.append(f"{name}={value!r} is no URI; write file:///path for a folder")
        elif value and "@" in urlsplit(value).netloc:  # it is shown in /v1/metadata and in logs
            self.problems.append(f"{name} holds a login, which would be shown; use ENGINERY_REPOSITORY_TOKEN or AWS_*")
        return value or None

    def word(self, default: str, words: tuple[str, ...], *names: str) -> str:
        """One of some words, in any case."""
        name, value = self._named(names)
        word = {word.lower(): word for word in words}.get(value.lower() or default.lower())
        if word is None:
            self.problems.append(f"{name}={value!r} is not one of {', '.join(words)}")
        return word or default

    def precision(self, *names: str) -> Precision | None:
        name, value = self._named(names)
        if value.lower() in AUTOMATIC:
            return None
        if value.lower() not in set(Precision):
            self.problems.append(f"{name}={value!r} is not one of {', '.join(Precision)}")
            return None
        return Precision(value.lower())
