"""A server that other machines can reach, whose only keys are those that `polyreel keys` made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from tests.conftest import start_live_server, stop_live_server

pytestmark = pytest.mark.slow


def keys(state_dir: Path, *words: str) -> dict[str, object]:
    """Call `polyreel keys` as an operator does; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "polyreel", "keys", *words, "--json", "--state-dir", str(state_dir)],
        env={name: value for name, value in os.environ.items() if not name.startswith("POLYREEL_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    made: dict[str, object] = json.loads(done.stdout)
    return made


def status(base_url: str, key: object) -> int:
    return httpx2.get(f"{base_url}/polyreel/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code


def test_it_starts_with_a_key_made_before_and_knows_those_made_later(tmp_path: Path) -> None:
    state_dir, log = tmp_path / "state", tmp_path / "up.log"
    before = keys(state_dir, "create", "alice")
    server = start_live_server(state_dir, log, "--host", "0.0.0.0", POLYREEL_API_KEYS="")
    try:
        assert status(server.base_url, before["key"]) == 200
        later = keys(state_dir, "create", "bob", "--scopes", "read")
        assert status(server.base_url, later["key"]) == 200
        keys(state_dir, "revoke", str(later["id"]))
        asked_at = ended_at = time.monotonic()
        while status(server.base_url, later["key"]) != 401:
            assert asked_at - ended_at < 2  # when it was asked, however long a busy machine took to answer
            time.sleep(0.1)
            asked_at = time.monotonic()
        follower = keys(state_dir, "rotate", str(before["id"]), "--overlap", "1h")
        assert [status(server.base_url, one["key"]) for one in (before, follower)] == [200, 200]
    finally:
        stop_live_server(server.process)
    everything = b"".join(path.read_bytes() for path in [log, *state_dir.rglob("*")] if path.is_file())
    assert str(before["id"]).encode() in everything, "what is searched holds what it should"
    for made in (before, later, follower):
        assert str(made["key"]).encode() not in everything
        assert str(made["key"])[12:44].encode() not in everything
