"""What happens to acknowledged jobs when a part of the server is killed, with real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.conftest import KEY, OTHER_KEY, LiveServer, start_live_server, stop_live_server
from tests.live.descendants import all_gone_from, sessions_below, titles_in

SLOW = {"model_id": "ltx", "num_frames": 25, "height": 512, "width": 512, "num_inference_steps": 40}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, live: LiveServer) -> Iterator[LiveServer]:
    """A server of this module's own; it borrows the tiny checkpoints that `live` has built."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "state").mkdir()
    (folder / "state" / "checkpoints").symlink_to(live.state_dir / "checkpoints")
    server = start_live_server(folder / "state", folder / "up.log")
    yield server
    stop_live_server(server.process)


def submit(server: LiveServer, **body: Any) -> int:
    answer = httpx2.post(
        f"{server.base_url}/api/v6/video/text2video",
        json={"key": KEY, "prompt": "a cat", "instant_response": True, **SLOW, **body},
    ).json()
    assert answer["status"] == "processing", answer
    return int(answer["id"])


def fetch(server: LiveServer, job_id: int) -> dict[str, Any]:
    return httpx2.post(f"{server.base_url}/api/v6/video/fetch/{job_id}", json={"key": KEY}, timeout=10).json()


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.1)


def ended_well(server: LiveServer, job_id: int) -> Callable[[], bool]:
    def check() -> bool:
        try:
            answer = fetch(server, job_id)
        except httpx2.TransportError:  # the API is being restarted
            return False
        assert answer["status"] in ("processing", "success", "error"), answer
        return bool(answer["status"] == "success")

    return check


def child(server: LiveServer, title: str) -> psutil.Process:
    """Return the supervised process whose command line begins with `title`."""
    for process in psutil.Process(server.process.pid).children():
        if " ".join(process.cmdline()).startswith(title) or process.name().startswith(title):
            return process
    raise AssertionError(f"no {title} among the children")


def running(server: LiveServer, job_id: int) -> Callable[[], bool]:
    """Return a check that the job has begun to denoise, seen through Novita's progress."""

    def check() -> bool:
        prefix = fetch(server, job_id)["meta"]["file_prefix"]
        result = httpx2.get(
            f"{server.base_url}/v3/async/task-result",
            params={"task_id": prefix},
            headers={"Authorization": f"Bearer {KEY}"},
        ).json()
        return bool(result["task"]["progress_percent"] > 5)

    return check


def test_processes_show_their_names_in_ps(server: LiveServer) -> None:
    titles = {" ".join(process.cmdline()).strip() for process in psutil.Process(server.process.pid).children()}
    assert {"polyreel serve", "polyreel worker", "polyreel courier"} <= titles


def test_a_job_whose_worker_is_killed_runs_again_and_ends_well(server: LiveServer) -> None:
    job_id = submit(server)
    until(running(server, job_id), 90)
    child(server, "polyreel worker").send_signal(signal.SIGKILL)
    until(ended_well(server, job_id), 90)


def test_a_running_and_a_queued_job_survive_the_death_of_the_queue_server(server: LiveServer) -> None:
    first, second = submit(server), submit(server, num_inference_steps=2)
    until(running(server, first), 90)
    child(server, "valkey").send_signal(signal.SIGKILL)
    until(ended_well(server, first), 90)
    until(ended_well(server, second), 30)


def test_jobs_go_on_while_the_api_is_killed_and_restarted(server: LiveServer) -> None:
    job_id = submit(server)
    child(server, "polyreel serve").send_signal(signal.SIGKILL)
    until(ended_well(server, job_id), 60)


def test_the_queue_is_kept_over_a_stop_and_a_start_and_no_process_survives_its_supervisor(
    tmp_path: Path, live: LiveServer
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "checkpoints").symlink_to(live.state_dir / "checkpoints")
    server = start_live_server(state, tmp_path / "up.log", "--workers=2", POLYREEL_DRAIN_S="0", POLYREEL_LEASE_S="4")
    finished = submit(server, num_inference_steps=2)
    until(ended_well(server, finished), 60)
    waiting = [submit(server, height=256, width=256, num_inference_steps=20) for _ in range(2)]
    below = sessions_below(server.process.pid)
    assert titles_in(below).count("polyreel worker") == 2
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    assert all_gone_from(below), titles_in(below)
    server = start_live_server(state, tmp_path / "up.log", "--workers=2", POLYREEL_LEASE_S="4")
    try:
        assert fetch(server, finished)["status"] == "success"
        for job_id in waiting:
            until(ended_well(server, job_id), 90)
    finally:
        stop_live_server(server.process)


def test_a_second_stop_hands_the_job_back_at_once_and_without_a_traceback(tmp_path: Path, live: LiveServer) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "checkpoints").symlink_to(live.state_dir / "checkpoints")
    server = start_live_server(state, tmp_path / "up.log")
    job_id = submit(server, num_inference_steps=50, num_frames=25)
    queued = [submit(server) for _ in range(3)]
    until(running(server, job_id), 90)
    server.process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    began = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(25) == 0
    assert time.monotonic() - began < 15, "it did not wait for drain_s"
    log = (tmp_path / "up.log").read_text()
    assert "Stop again to hand it back now" in log
    assert "diffusers" not in log
    assert len(queued) == 3


def test_another_owners_job_reads_exactly_like_an_unknown_one(server: LiveServer) -> None:
    job_id = submit(server, num_inference_steps=2)
    theirs = httpx2.post(f"{server.base_url}/api/v6/video/fetch/{job_id}", json={"key": OTHER_KEY})
    unknown = httpx2.post(f"{server.base_url}/api/v6/video/fetch/12345", json={"key": OTHER_KEY})
    assert (theirs.status_code, theirs.content) == (unknown.status_code, unknown.content) == (404, unknown.content)
