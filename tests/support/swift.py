"""OpenStack Swift with its S3 API, from Debian's packages: a real S3 server, with files, checksums and listings."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.servers import free_port, process

SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's, which has the package swift
KEYS = {"AWS_ACCESS_KEY_ID": "test:testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
SERVERS = ("account", "container", "object", "proxy")
needs_swift = pytest.mark.skipif(
    shutil.which("swift-proxy-server") is None,
    reason="apt-get install swift-proxy swift-account swift-container swift-object",
)
# One ring of one device for each kind of server; swift-ring-builder would be nine processes.
RINGS = """
import sys
from swift.common.ring import RingBuilder
folder = sys.argv[1]
for name, port in zip(("account", "container", "object"), sys.argv[2:]):
    builder = RingBuilder(0, 1, 1)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "disk", "weight": 1.0,
                     "replication_ip": "127.0.0.1", "replication_port": int(port), "meta": ""})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""
FILTERS = """
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_testing = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""


@contextmanager
def swift(folder: Path) -> Iterator[str]:
    """A running Swift, empty: the URL of its S3 API."""
    etc, ports = folder / "etc", {name: free_port() for name in SERVERS}
    etc.mkdir(parents=True)
    (folder / "node" / "disk").mkdir(parents=True)
    (etc / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = a\n[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    for name in SERVERS:
        (etc / f"{name}-server.conf").write_text(_settings(name, ports[name], folder))
    rings = [SYSTEM_PYTHON, "-c", RINGS, etc, *(str(ports[name]) for name in SERVERS[:3])]
    subprocess.run(rings, check=True, timeout=60, env={**os.environ, "PYTHONPATH": ""})
    with ExitStack() as running:
        for name in SERVERS:
            command = [f"swift-{name}-server", str(etc / f"{name}-server.conf"), "-v"]
            environ = {"SWIFT_CONF_DIR": str(etc), "PYTHONPATH": ""}
            running.enter_context(process(command, ports[name], folder / f"{name}.log", environ))
        yield f"http://127.0.0.1:{ports['proxy']}"


def _settings(name: str, port: int, folder: Path) -> str:
    pipeline = "catch_errors cache s3api tempauth bulk slo proxy-server" if name == "proxy" else f"{name}-server"
    return f"""
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {getpass.getuser()}
swift_dir = {folder}/etc
devices = {folder}/node
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
[pipeline:main]
pipeline = {pipeline}
[app:{name}-server]
use = egg:swift#{name}
{"account_autocreate = true" + FILTERS if name == "proxy" else ""}
"""
