"""A server that is saved while it works and put back elsewhere goes on there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import KEY, start_live_server, stop_live_server

pytestmark = pytest.mark.slow

HEADERS = {"Authorization": f"Bearer {KEY}"}
JOB = {"model": "ltx-tiny", "prompt": "a cat", "num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 2}


def polyreel(*words: str) -> dict[str, Any]:
    """Call the command as an operator does; return the JSON that it prints. Any: JSON."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLYREEL_")}
    command = [sys.executable, "-P", "-m", "polyreel", *words, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def submit(base_url: str, steps: int = 2) -> str:
    body = JOB | {"num_inference_steps": steps}
    answer = httpx2.post(f"{base_url}/polyreel/v1/jobs", json=body, headers=HEADERS, timeout=30)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def wait(base_url: str, job: str) -> dict[str, Any]:
    """Follow a job's events to their end; return its record."""
    with httpx2.stream("GET", f"{base_url}/polyreel/v1/jobs/{job}/events", headers=HEADERS, timeout=120) as events:
        for _ in events.iter_lines():
            pass
    found: dict[str, Any] = httpx2.get(f"{base_url}/polyreel/v1/jobs/{job}", headers=HEADERS, timeout=30).json()
    return found


def test_links_and_jobs_of_a_saved_server_are_good_on_the_one_that_it_is_put_back_to(tmp_path: Path) -> None:
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "b.tar.gz"
    server = start_live_server(here, tmp_path / "here.log")
    try:
        ended = wait(server.base_url, submit(server.base_url))
        link = str(ended["outputs"][0]["url"])
        video = httpx2.get(link, timeout=30).content
        later = [submit(server.base_url, steps=100) for _ in range(5)]
        saved = polyreel("backup", str(file), "--state-dir", str(here))
        jobs = saved["manifest"]["jobs"]
        assert jobs["queued"] >= 1, "some wait yet"
        assert httpx2.get(f"{server.base_url}/ready", timeout=30).status_code == 200, "it works on"
    finally:
        stop_live_server(server.process)
    restored = polyreel("restore", str(file), "--state-dir", str(there))
    assert (restored["verified"], restored["missing"], restored["damaged"]) == (jobs["succeeded"], [], [])
    assert restored["requeued"] == 6 - jobs["succeeded"] - jobs["queued"]
    server = start_live_server(there, tmp_path / "there.log")
    try:
        elsewhere = f"{server.base_url}/files/{link.partition('/files/')[2]}"
        assert httpx2.get(elsewhere, timeout=30).content == video
        assert [wait(server.base_url, job)["status"] for job in later[-2:]] == ["succeeded"] * 2
    finally:
        stop_live_server(server.process)
