"""Write log records for people or as one JSON object a line."""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import TextIO

import orjson

FIELDS = "fields"  # logging's `extra={FIELDS: {...}}` carries what belongs to one record


def setup(*, level: str, as_json: bool, stream: TextIO | None = None) -> None:
    """Send every record of this process to one stream."""
    # What no line here shows need not be looked up: there is a line for every request.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One record, one line; control characters are escaped, so a request cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": f"{_second(int(record.created), UTC)}.{int(record.msecs):03d}+00:00",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # half of a surrogate pair, which is no UTF-8
            return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`2026-11-21 10:00:00,000 INFO message key=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return f"{_second(int(record.created), None).replace('T', ' ')},{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        return f"{super().formatMessage(record)} {fields}".rstrip()


@functools.lru_cache(maxsize=2)
def _second(timestamp: int, zone: tzinfo | None) -> str:
    """Written once for all lines of a second."""
    return datetime.fromtimestamp(timestamp, zone).isoformat()[:19]


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, FIELDS, None)
    return fields if isinstance(fields, dict) else {}
