"""Log records as lines of JSON."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path

import pytest

from serving.watch.logs import FIELDS, JsonFormatter


@pytest.mark.parametrize("text", ["plain", "two\nlines", "half a pair \ud800", "\x1b[31m"])
def test_a_json_line_is_one_line_whatever_it_says(text: str) -> None:
    record = logging.LogRecord("n", logging.INFO, "f", 1, text, None, None)
    setattr(record, FIELDS, {"text": text, "path": Path("a")})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    told = json.loads(line)
    assert (told["message"], told["text"], told["path"]) == (text, text, "a")
    assert datetime.fromisoformat(told["time"]).timestamp() == pytest.approx(record.created, abs=0.002)
