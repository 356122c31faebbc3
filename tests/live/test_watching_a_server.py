"""`polyreel jobs watch`, `queue`, `gpus` and `doctor` as processes, beside a whole server with a real worker."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import httpx2
import pytest

from tests.conftest import LiveServer

pytestmark = pytest.mark.slow

POLYREEL = [sys.executable, "-P", "-m", "polyreel"]


@pytest.fixture
def environment(live: LiveServer) -> dict[str, str]:
    port = live.base_url.rpartition(":")[2]
    own = {"POLYREEL_URL": live.base_url, "POLYREEL_KEY": live.key, "POLYREEL_PORT": port, "COLUMNS": "150"}
    return os.environ | own | {"TERM": "xterm", "POLYREEL_STATE_DIR": str(live.state_dir)}


@pytest.fixture
def polyreel(environment: dict[str, str]) -> Callable[..., str]:
    """Run a command line that must end well; return what it prints."""

    def polyreel(*words: str) -> str:
        done = subprocess.run([*POLYREEL, *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    return polyreel


def submit(live: LiveServer, **fields: object) -> str:
    body = {"model": "atelier", "prompt": "a paper boat", "num_frames": 5, "height": 64, "width": 64, **fields}
    answer = httpx2.post(
        f"{live.base_url}/polyreel/v1/jobs", json=body, headers={"Authorization": f"Bearer {live.key}"}, timeout=60
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_job_is_followed_from_its_place_to_its_file(live: LiveServer, polyreel: Callable[..., str]) -> None:
    first, second = submit(live, num_inference_steps=30), submit(live, num_inference_steps=5)
    events = [json.loads(line) for line in polyreel("jobs", "watch", first, second, "--json").splitlines()]
    ends = {event["id"]: event for event in events if event["event"] == "end"}
    assert {job_id: event["status"] for job_id, event in ends.items()} == {first: "succeeded", second: "succeeded"}
    url = polyreel("jobs", "watch", first).split()[-1]
    assert httpx2.get(url, timeout=60).content == httpx2.get(ends[first]["outputs"][0]["url"], timeout=60).content


def test_in_a_terminal_there_is_a_bar(live: LiveServer, environment: dict[str, str]) -> None:
    job_id = submit(live, num_inference_steps=20)
    ours, theirs = pty.openpty()
    watching = subprocess.Popen([*POLYREEL, "jobs", "watch", job_id], env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # EIO: the other end is closed
        pass
    os.close(ours)
    assert watching.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "━" in text
    assert f"{job_id} " in text
    assert "succeeded http" in text


def test_the_server_shows_its_worker_and_the_doctor_finds_it_well(
    live: LiveServer, polyreel: Callable[..., str]
) -> None:
    assert polyreel("jobs", "watch", submit(live)).count("succeeded") == 1
    [worker] = json.loads(polyreel("gpus", "--json"))
    while not worker["jobs_per_minute"]:  # the heartbeat that says so comes after the job's end; the test has a timeout
        [worker] = json.loads(polyreel("gpus", "--json"))
    assert (worker["device"], worker["gpu"]) == ("cpu", None)
    assert set(json.loads(polyreel("queue", "--json"))) == {"unfinished", "running", "most", "models"}
    found = json.loads(polyreel("doctor", "--json"))
    assert [finding for finding in found if finding["status"] == "fail"] == []
    said = {finding["check"]: finding["says"] for finding in found}
    assert said["redis"] == "the embedded one answers"
    assert said["port"].startswith("a Polyreel listens on 127.0.0.1:")
    assert said["webhooks"] == "a courier comes for webhooks"
