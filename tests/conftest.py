"""For every test: nothing is sent anywhere, also by libraries that would."""

from __future__ import annotations

import os

os.environ |= {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}

pytest_plugins = [
    "tests.support.models",
    "tests.support.profiles",
    "tests.support.bench",
    "tests.support.side_by_side",
    "tests.support.buckets",
    "tests.support.images",
    "tests.support.registries",
]
