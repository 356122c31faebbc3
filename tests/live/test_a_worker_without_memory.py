"""A worker process on a device that fails: it ends by itself and loses no job; it says why a model cannot run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyreel.job import JobStatus, VideoJob
from polyreel.queue import Queue
from tests.core.jobs import REQUEST, queued

#: Each case is processes of its own; `tests/workers` has the same in one.
pytestmark = pytest.mark.slow

#: Two models, one of which cannot run.
PROFILE = """
device: cpu
threads: 1
models:
  ltx-tiny: {family: ltx, checkpoint: "tiny:ltx", placement: {mode: resident, retry_with_less: false}}
  broken: {family: ltx, checkpoint: FOLDER}
"""

#: A worker in which every forward pass of the transformer raises.
FAILING = """
import sys
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from workers.__main__ import main

error = {"memory": torch.OutOfMemoryError("CUDA out of memory."),
         "device": torch.AcceleratorError("CUDA error: an illegal memory access was encountered")}[sys.argv[1]]

def fail(module, inputs):
    if type(module).__name__ == "LTXVideoTransformer3DModel":
        raise error

register_module_forward_pre_hook(fail)
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def queue(redis_url: str) -> Queue:
    return Queue(redis_url, retention_s=3600, max_open=10, job_timeout_s=600, patient=False)


@pytest.fixture
def start(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a worker that serves `PROFILE`; `failing` is "memory" or "device"."""
    (tmp_path / "not-a-checkpoint").mkdir()
    profile = tmp_path / "profile.yaml"
    profile.write_text(PROFILE.replace("FOLDER", str(tmp_path / "not-a-checkpoint")))
    started: list[subprocess.Popen[bytes]] = []

    def start(failing: str = "") -> subprocess.Popen[bytes]:
        program = ["-c", FAILING, failing] if failing else ["-P", "-m", "workers"]
        flags = ["--config", str(profile), "--state-dir", str(tmp_path / "state")]
        with (tmp_path / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *program, *flags],
                env={**os.environ, "REDIS_URL": redis_url, "POLYREEL_UNAVAILABLE_AFTER_S": "0"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def read(queue: Queue, job: VideoJob) -> VideoJob:
    stored = queue.records.get(job.id)
    assert stored is not None
    return stored.job


def said(queue: Queue) -> dict[str, Any]:
    """Return what the one live worker says of itself, {} when there is none."""
    texts = [queue.records.client.get(key) for key in queue.records.client.scan_iter("polyreel:worker:*")]
    return json.loads(str(texts[0])) if texts else {}


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


@pytest.mark.timeout(180)
def test_a_worker_that_cannot_go_on_ends_after_its_job_and_the_next_worker_runs_the_next_job(
    queue: Queue, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    first, second = queue.submit(queued()).job, queue.submit(queued()).job
    worker = start("memory")
    assert worker.wait(90) == 71
    assert (read(queue, first).status, read(queue, first).error_code) == (JobStatus.FAILED, "gpu_out_of_memory")
    assert (read(queue, second).status, read(queue, second).attempts) == (JobStatus.QUEUED, 0)
    assert said(queue) == {}
    assert "the self-check failed with OutOfMemory" in (tmp_path / "worker.log").read_text()
    start()
    until(lambda: read(queue, second).status is JobStatus.SUCCEEDED, 90)


@pytest.mark.timeout(180)
def test_a_lost_device_costs_an_attempt_and_the_next_worker_finishes_the_job(
    queue: Queue, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    job = queue.submit(queued()).job
    assert start("device").wait(90) == 71
    assert (read(queue, job).status.is_terminal, read(queue, job).attempts) == (False, 1)
    start()
    until(lambda: read(queue, job).status is JobStatus.SUCCEEDED, 90)
    assert read(queue, job).attempts == 2


@pytest.mark.timeout(180)
def test_a_broken_model_is_unavailable_with_its_reason_while_the_other_serves(
    queue: Queue, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    worker = start()
    until(lambda: bool(said(queue)), 60)
    about = said(queue)
    folder = tmp_path / "not-a-checkpoint"
    assert about["models"] == ["ltx-tiny"]
    assert list(about["unavailable"]) == ["broken"]
    assert about["unavailable"]["broken"].startswith(f"{folder / 'model_index.json'} is missing")
    assert about["memory_bytes"] is None  # a CPU has no limit of its own
    bad, good = queue.submit(queued(replace(REQUEST, model="broken"))).job, queue.submit(queued()).job
    until(lambda: read(queue, good).status is JobStatus.SUCCEEDED, 60)
    assert read(queue, bad).error_code == "checkpoint_unavailable"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
