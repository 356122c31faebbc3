"""`polyreel up` and `polyreel worker` with two workers: what each sees, how they stop, and that none stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import redis

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.job import JobStatus
from polyreel.queue import Queue
from polyreel.records import WORKER_PREFIX, StoredJob
from tests.conftest import LiveServer, start_live_server, stop_live_server
from tests.core.jobs import REQUEST, queued
from tests.live.descendants import all_gone_from, sessions_below, titles_in

#: GPUs that no machine has, so the workers compute on the CPU everywhere.
LISTING = "".join(
    f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: GPU-f00d000{n}-0000-0000-0000-000000000000)\n" for n in range(3)
)

#: Longer than any test waits, on any machine.
ENDLESS = replace(REQUEST, height=512, width=512, num_inference_steps=20_000)

DRAIN_S = 3.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A Valkey that outlives the supervisors, so that what they left in it can be read."""
    broker = start_embedded(tmp_path_factory.mktemp("valkey"))
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def queue(broker: EmbeddedBroker) -> Queue:
    return Queue(broker.url, retention_s=3600, max_open=10, job_timeout_s=600, patient=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, live: LiveServer) -> Path:
    """A folder for state and logs; it borrows the checkpoints that `live` has built."""
    folder = tmp_path_factory.mktemp("supervisor")
    (folder / "state").mkdir()
    (folder / "state" / "checkpoints").symlink_to(live.state_dir / "checkpoints")
    (folder / "listing").write_text(LISTING)
    (folder / "bin").mkdir()
    (folder / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\nexec /bin/cat {folder}/listing\n")
    (folder / "bin" / "nvidia-smi").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def server(broker: EmbeddedBroker, folder: Path) -> Iterator[LiveServer]:
    """`polyreel up` on the first and the third of three GPUs."""
    server = start_live_server(
        folder / "state",
        folder / "up.log",
        "--gpus=0,2",
        REDIS_URL=broker.url,
        PATH=f"{folder / 'bin'}:{os.environ['PATH']}",
        POLYREEL_DEVICE="auto",
        POLYREEL_DRAIN_S=str(DRAIN_S),
        POLYREEL_SCHEDULING__GRACE_SWAPS="0",  # else the second leaves both jobs to the one that loads their model
        SPT_NOENV="1",  # a process that sets its title overwrites what the kernel shows of its environment
    )
    yield server
    stop_live_server(server.process)


def workers(broker: EmbeddedBroker) -> list[str]:
    """Return the names of the workers whose hearts beat, sorted."""
    with redis.Redis.from_url(broker.url, decode_responses=True) as client:
        return sorted(str(key).removeprefix(WORKER_PREFIX) for key in client.scan_iter(f"{WORKER_PREFIX}*"))


def until(condition: Callable[[], object], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


def get(queue: Queue, job_id: str) -> StoredJob:
    stored = queue.records.get(job_id)
    assert stored is not None
    return stored


def worker_processes(supervisor: int) -> dict[str, psutil.Process]:
    """Return a supervisor's workers by their slots."""
    found = {}
    for process in psutil.Process(supervisor).children():
        if " ".join(process.cmdline()).startswith("polyreel worker"):
            found[process.environ()["CUDA_VISIBLE_DEVICES"]] = process
    return found


def test_two_busy_workers_on_gpus_of_their_own_replace_a_dead_one_and_hand_back_together(
    server: LiveServer, broker: EmbeddedBroker, queue: Queue, folder: Path
) -> None:
    until(lambda: len(workers(broker)) == 2)
    host = os.uname().nodename
    assert [name[:-8] for name in workers(broker)] == [f"{host}-gpu0-", f"{host}-gpu2-"]
    processes = worker_processes(server.process.pid)
    assert set(processes) == {"GPU-f00d0000-0000-0000-0000-000000000000", "GPU-f00d0002-0000-0000-0000-000000000000"}
    assert {process.environ()["CUDA_DEVICE_ORDER"] for process in processes.values()} == {"PCI_BUS_ID"}

    jobs = [queue.submit(queued(ENDLESS)).job.id for _ in range(2)]
    until(lambda: all(get(queue, job).job.status is JobStatus.RUNNING for job in jobs))
    by_slot = {(get(queue, job).job.worker or "").split("-")[-2]: job for job in jobs}
    assert set(by_slot) == {"gpu0", "gpu2"}, "each has one of the jobs"

    first_life = get(queue, by_slot["gpu0"]).job.worker
    processes["GPU-f00d0000-0000-0000-0000-000000000000"].kill()
    # The other one is busy, so only the dead one's successor can take the job.
    until(lambda: get(queue, by_slot["gpu0"]).job.worker not in ("", None, first_life))
    assert (get(queue, by_slot["gpu0"]).job.worker or "").startswith(f"{host}-gpu0-")
    assert get(queue, by_slot["gpu0"]).job.attempts == 2
    assert processes["GPU-f00d0002-0000-0000-0000-000000000000"].is_running()
    until(lambda: len(workers(broker)) == 2)

    below = sessions_below(server.process.pid)
    began = time.monotonic()
    server.process.terminate()
    assert server.process.wait(60) == 0
    # One drain for both, then 5 s for whoever does not listen; the rest is what a slow machine needs.
    assert DRAIN_S <= time.monotonic() - began < DRAIN_S + 5 + 15
    assert [
        (get(queue, by_slot[slot]).claimable, get(queue, by_slot[slot]).job.attempts) for slot in sorted(by_slot)
    ] == [
        (True, 1),
        (True, 0),
    ], "handed back, and only the death was counted"
    assert workers(broker) == []
    assert all_gone_from(below)
    for job in jobs:
        queue.cancel(job)
    log = (folder / "up.log").read_text()
    assert "polyreel up: 2 workers: gpu0, gpu2" in log
    assert "polyreel up: worker gpu0 ended (SIGKILL" in log


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
def test_no_process_survives_a_killed_supervisor_of_workers(broker: EmbeddedBroker, folder: Path) -> None:
    with (folder / "workers.log").open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", "polyreel", "worker", "--workers=2", f"--state-dir={folder / 'state'}"],
            env={**os.environ, "REDIS_URL": broker.url},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: len(workers(broker)) == 2 or supervisor.poll() is not None)
        host = os.uname().nodename
        assert [name[:-8] for name in workers(broker)] == [f"{host}-1-", f"{host}-2-"]
        below = sessions_below(supervisor.pid)
        assert titles_in(below) == ["polyreel keeper", "polyreel keeper", "polyreel worker", "polyreel worker"]
    finally:
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait()
    assert all_gone_from(below)
    assert workers(broker) == [], "their keepers have signed them off"
