"""A worker as compose and Kubernetes run it: started by hand, stopped by SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from polyreel.job import JobStatus, VideoJob
from polyreel.queue import Queue
from tests.conftest import LiveServer
from tests.core.jobs import REQUEST, queued


@pytest.fixture
def queue(redis_url: str) -> Queue:
    return Queue(redis_url, retention_s=3600, max_open=10, job_timeout_s=600, patient=False)


@pytest.fixture
def start(
    redis_url: str, live: LiveServer, tmp_path: Path, queue: Queue
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start workers on the queue; they borrow the checkpoints that `live` has built."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "checkpoints").symlink_to(live.state_dir / "checkpoints")
    started: list[subprocess.Popen[bytes]] = []

    def start(*flags: str, **environment: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers", "--state-dir", str(tmp_path / "state"), *flags],
                env={**os.environ, "REDIS_URL": redis_url, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def status(queue: Queue, job: VideoJob) -> JobStatus:
    stored = queue.records.get(job.id)
    assert stored is not None
    return stored.job.status


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


LONG = replace(REQUEST, height=512, width=512, num_inference_steps=20)

#: Longer than any test waits, on any machine.
ENDLESS = replace(LONG, num_inference_steps=20_000)


def test_a_stopped_worker_hands_a_long_job_back_after_its_patience_and_uncounted(
    queue: Queue, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    job = queue.submit(queued(ENDLESS)).job
    worker = start(POLYREEL_DRAIN_S="2")
    until(lambda: status(queue, job) is JobStatus.RUNNING, 90)
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    worker.wait(20)
    assert time.monotonic() - began >= 2
    stored = queue.records.get(job.id)
    assert stored is not None
    assert (stored.claimable, stored.job.attempts, stored.job.status) == (True, 0, JobStatus.RUNNING)


def test_a_stopped_worker_finishes_a_short_job_and_takes_no_other(
    queue: Queue, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    jobs = [queue.submit(queued(LONG)).job for _ in range(9)]
    worker = start(POLYREEL_DRAIN_S="200")  # loading the model is part of it
    until(lambda: status(queue, jobs[0]) is not JobStatus.QUEUED, 90)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(240) == 0
    ends = [status(queue, job) for job in jobs]
    done = ends.count(JobStatus.SUCCEEDED)
    assert 1 <= done < 9, "a fast machine may have done a few before it was told"
    assert ends == [JobStatus.SUCCEEDED] * done + [JobStatus.QUEUED] * (9 - done)


def test_no_prompt_reaches_the_log_of_a_worker(
    queue: Queue, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """diffusers itself quotes what it cuts off a prompt that is too long for the text encoder."""
    words = " ".join(f"sentinel{n}" for n in range(300))
    jobs = []
    for model in ("ltx-tiny", "atelier", "animatediff-tiny"):
        prompts = (replace(REQUEST.prompts[0], prompt=words),)
        request = replace(REQUEST, model=model, prompts=prompts, negative_prompt=words, num_inference_steps=2)
        jobs.append(queue.submit(queued(request)).job)
    start(POLYREEL_LOG_LEVEL="debug")
    until(lambda: all(status(queue, job) is JobStatus.SUCCEEDED for job in jobs), 90)
    assert "sentinel" not in (tmp_path / "worker.log").read_text()


def test_a_worker_without_the_device_it_was_told_to_use_says_so(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert start("--device", "cuda").wait(60) == 2
