"""Two machines of one server, as processes: they share secrets, and none starts that stores where others do not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from polyreel.broker import EmbeddedBroker, start_embedded
from tests.conftest import KEY, free_port

pytestmark = pytest.mark.slow

#: No process of a busy machine takes longer to start, seconds.
_PATIENCE_S = 120


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = start_embedded(tmp_path / "redis")
    yield broker
    broker.stop()


def start(queue: EmbeddedBroker, state_dir: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    given = {"REDIS_URL": queue.url, "POLYREEL_API_KEYS": f"alice:{KEY}", **environment}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "polyreel", *words, "--state-dir", str(state_dir)],
        env={**os.environ, **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def secret_of(port: int, process: subprocess.Popen[str]) -> str:
    """Return alice's webhook secret as an API tells it."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            url = f"http://127.0.0.1:{port}/polyreel/v1/webhooks/secret"
            return str(httpx2.get(url, headers={"Authorization": f"Bearer {KEY}"}).json()["secret"])
        except httpx2.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"polyreel serve did not answer: {process.communicate()[0]}")


def test_machines_share_secrets_and_the_one_that_stores_elsewhere_does_not_start(
    queue: EmbeddedBroker, tmp_path: Path
) -> None:
    results = (tmp_path / "shared").as_uri()
    ports = [free_port(), free_port()]
    servers = [
        start(queue, tmp_path / name, "serve", "--port", str(port), POLYREEL_STORAGE=results)
        for name, port in zip(("one", "two"), ports, strict=True)
    ]
    try:
        first, second = (secret_of(port, server) for port, server in zip(ports, servers, strict=True))
        assert first == second
        nothing = tmp_path / "no-weights.yaml"
        nothing.write_text("models: {ltx: {family: ltx, checkpoint: /nowhere}}\n")
        for words in (["serve", "--port", str(free_port())], ["worker", "--config", str(nothing), "--device", "cpu"]):
            elsewhere = start(queue, tmp_path / "three", *words)
            said, _ = elsewhere.communicate(timeout=_PATIENCE_S)
            assert elsewhere.returncode == 2, said
            assert f"storage: the results of this server lie in {results} on " in said
            assert f"file://{tmp_path}/three/results on " in said
            assert "polyreel storage adopt" in said
            assert "Traceback" not in said
    finally:
        for server in servers:
            server.terminate()
            server.communicate(timeout=_PATIENCE_S)
