"""A worker's leases are kept by a process beside it: as long as the worker lives and is not stopped, and no longer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from polyreel.commands import Commands
from polyreel.job import TIMEOUT_MESSAGE, JobStatus, VideoJob
from polyreel.leases import Claim
from polyreel.queue import Queue
from polyreel.records import StoredJob
from tests.core.jobs import MODEL, assert_all_adds_up, claim, open_queue, queued
from tests.core.jobs import read as read_stored
from tests.workers.conftest import OwnValkey

#: A lease of most tests: short; one that runs out because the machine is busy is taken again.
LEASE_S = 1.0


class Worker:
    """The process of `tests.workers.kept_worker`."""

    def __init__(self, url: str, name: str, lease_s: float, log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.workers.kept_worker", url, name, str(lease_s)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=Path(__file__).parents[2],
                text=True,
            )
        self.log = log
        assert self._answer() is None

    def begin(self, *call: object) -> None:
        """Tell it to do something, and do not wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()

    def _answer(self) -> Any:  # Any: JSON
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)

    def do(self, *call: object) -> Any:
        self.begin(*call)
        return self._answer()

    @property
    def keeper(self) -> psutil.Process:
        """The keeper that runs now."""
        found: list[psutil.Process] = []
        until(lambda: bool(found.extend(psutil.Process(self.process.pid).children()) or found), "a keeper")
        return found[0]

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.02)


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Return a factory of workers on a queue."""
    started: list[Worker] = []

    def start(queue: Queue, url: str, name: str = "one") -> Worker:
        started.append(Worker(url, name, queue.leases.lease_s, tmp_path / f"{name}.log"))
        return started[-1]

    yield start
    for worker in started:
        worker.end()


@pytest.fixture
def queue(redis_url: str) -> Queue:
    return open_queue(redis_url, lease_s=LEASE_S)


@contextmanager
def reaped(queue: Queue) -> Iterator[None]:
    """Reap all the time, as the keepers of other workers do."""
    done = threading.Event()

    def reap() -> None:
        while not done.wait(queue.leases.renew_s / 4):
            queue.leases.reap()

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def read(queue: Queue, job: VideoJob) -> StoredJob:
    return read_stored(queue, job.id)


def with_a_job(queue: Queue, url: str, start: Callable[..., Worker]) -> tuple[VideoJob, Worker, psutil.Process]:
    """Return a job, a worker that has it, and the worker's keeper, which has sent its first heartbeat."""
    job = queue.submit(queued()).job
    worker = start(queue, url)
    worker.do("claim")
    keeper = worker.keeper
    until(lambda: queue.records.client.exists("polyreel:worker:one") == 1, "its heartbeat")
    return job, worker, keeper


def deadline_of(queue: Queue, job: VideoJob) -> float:
    """Return when a job's lease runs out, by Redis' clock; 0 without one."""
    return float(queue.records.client.zscore("polyreel:leases", job.id) or 0)


@pytest.mark.parametrize(("lease_s", "seconds"), [(LEASE_S, 3), pytest.param(20, 30, marks=pytest.mark.slow)])
def test_a_native_call_that_keeps_pythons_lock_for_longer_than_a_lease_does_not_lose_the_job(
    redis_url: str, start: Callable[..., Worker], lease_s: float, seconds: int
) -> None:
    queue = open_queue(redis_url, lease_s=lease_s)
    job = queue.submit(queued()).job
    worker = start(queue, redis_url)
    assert worker.do("claim") == [[job.id, 1]]
    with reaped(queue):
        worker.do("hold_the_lock", seconds)
        assert worker.do("lost") == []
        now = read(queue, job)
        assert (now.fence, now.claimable, now.job.worker, now.job.attempts) == (1, False, "one", 1)


def test_a_worker_that_is_stopped_loses_its_job_to_another_and_is_told_so(
    queue: Queue, redis_url: str, start: Callable[..., Worker]
) -> None:
    job, worker, keeper = with_a_job(queue, redis_url, start)
    with reaped(queue):
        os.kill(worker.process.pid, signal.SIGSTOP)
        until(lambda: read(queue, job).claimable, "the job to be taken")
        assert claim(queue, "two") == [Claim(job.id, 2)]
        before, since = sum(keeper.cpu_times()[:2]), time.monotonic()
        until(lambda: time.monotonic() - since > 1, "a second to pass")
        # It must not spin; a keeper that does takes all of the time that passes.
        assert sum(keeper.cpu_times()[:2]) - before < 0.5 * (time.monotonic() - since)
        os.kill(worker.process.pid, signal.SIGCONT)
        until(lambda: worker.do("lost") == [[job.id, 1]], "the worker to be told")
    assert read(queue, job).fence == 2


def test_a_worker_that_goes_on_before_another_has_its_job_has_it_again(
    queue: Queue, redis_url: str, start: Callable[..., Worker]
) -> None:
    job, worker, _ = with_a_job(queue, redis_url, start)
    with reaped(queue):
        os.kill(worker.process.pid, signal.SIGSTOP)
        until(lambda: read(queue, job).claimable, "the job to be taken")
        os.kill(worker.process.pid, signal.SIGCONT)
        until(lambda: not read(queue, job).claimable, "the worker to have it again")
        assert worker.do("lost") == []
    assert (read(queue, job).fence, read(queue, job).job.worker) == (1, "one")
    assert_all_adds_up(queue.records.client)


def test_a_killed_workers_job_is_given_back_long_before_its_lease_runs_out(
    redis_url: str, start: Callable[..., Worker]
) -> None:
    queue = open_queue(redis_url, lease_s=600)
    job, worker, keeper = with_a_job(queue, redis_url, start)
    worker.process.kill()
    until(lambda: read(queue, job).claimable, "the job to be given back")
    assert read(queue, job).job.attempts == 1
    until(lambda: has_ended(keeper), "the keeper to end")
    assert queue.records.client.exists("polyreel:worker:one") == 0
    assert_all_adds_up(queue.records.client)


def test_a_job_that_its_worker_was_handing_back_when_it_was_killed_was_no_attempt(
    queue: Queue, redis_url: str, start: Callable[..., Worker]
) -> None:
    job, worker, keeper = with_a_job(queue, redis_url, start)
    keeper.suspend()  # so that it finds both at once, the last word and the death
    worker.do("hand_back")
    worker.process.kill()
    worker.process.wait()
    keeper.resume()
    until(lambda: read(queue, job).claimable, "the job to be given back")
    assert read(queue, job).job.attempts == 0
    until(lambda: has_ended(keeper), "the keeper to end")
    assert_all_adds_up(queue.records.client)


def test_a_keeper_that_died_is_started_again_and_told_everything(
    queue: Queue, redis_url: str, start: Callable[..., Worker]
) -> None:
    job, worker, keeper = with_a_job(queue, redis_url, start)
    with reaped(queue):
        keeper.kill()
        until(lambda: worker.keeper.pid != keeper.pid, "another keeper")
        before = deadline_of(queue, job)
        until(lambda: deadline_of(queue, job) > before + LEASE_S, "two renewals more")
    assert (read(queue, job).fence, read(queue, job).job.worker) == (1, "one")


def test_a_keeper_that_hangs_holds_up_nobody_and_is_replaced(
    queue: Queue, redis_url: str, start: Callable[..., Worker]
) -> None:
    worker = start(queue, redis_url)
    keeper = worker.keeper
    keeper.suspend()
    worker.do("refresh_often", 2000)  # more than a pipe holds; would never answer if it waited
    until(lambda: worker.keeper.pid != keeper.pid, "another keeper")


def test_a_keeper_that_hangs_is_replaced_also_when_nothing_is_told_to_it(
    queue: Queue, redis_url: str, start: Callable[..., Worker]
) -> None:
    worker = start(queue, redis_url)
    keeper = worker.keeper
    assert worker.do("is_heard")
    keeper.suspend()
    until(lambda: not worker.do("is_heard"), "the worker to notice")
    until(lambda: worker.keeper.pid != keeper.pid, "another keeper")
    until(lambda: worker.do("is_heard"), "the other one to be heard")


@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_a_job_is_kept_through_an_absence_of_redis_that_is_longer_than_its_lease(
    own: OwnValkey, start: Callable[..., Worker], how: str
) -> None:
    queue = open_queue(own.url, lease_s=LEASE_S, patient=True)
    job = queue.submit(queued()).job
    worker = start(queue, own.url)
    worker.do("claim")
    until(lambda: deadline_of(queue, job) > 0, "the lease")
    before = deadline_of(queue, job)
    if how == "killed":
        own.kill()
    else:
        own.signal(signal.SIGSTOP)
    since = time.monotonic()
    until(lambda: time.monotonic() - since > 1.5 * LEASE_S, "the lease to run out")
    if how == "killed":
        own.start_soon()
    else:
        own.signal(signal.SIGCONT)
    with reaped(queue):
        until(lambda: deadline_of(queue, job) > before + 2 * LEASE_S, "the lease to be renewed")
        assert worker.do("lost") == []
    assert (read(queue, job).fence, read(queue, job).claimable) == (1, False)
    assert_all_adds_up(queue.records.client)


@pytest.mark.parametrize(
    "call",
    [("hold_the_lock", 60), ("refresh_for", 60)],
    ids=["in a native call", "while the heartbeat changes all the time"],
)
def test_a_job_over_its_time_fails_and_its_worker_is_killed(
    queue: Queue, redis_url: str, start: Callable[..., Worker], call: tuple[str, int]
) -> None:
    job = queue.submit(queued()).job
    worker = start(queue, redis_url)
    worker.do("claim", 1, 0.5)
    worker.begin(*call)
    assert worker.process.wait(50) == -signal.SIGKILL
    failed = read(queue, job).job
    assert (failed.status, failed.error_code, failed.error_message) == (JobStatus.FAILED, "timeout", TIMEOUT_MESSAGE)
    assert "over its time" in worker.log.read_text()
    assert_all_adds_up(queue.records.client)


def test_of_two_jobs_with_limits_of_their_own_the_late_one_fails_and_the_other_is_given_back(
    queue: Queue, redis_url: str, start: Callable[..., Worker]
) -> None:
    late, other = queue.submit(queued()).job, queue.submit(queued()).job
    worker = start(queue, redis_url)
    worker.do("claim", 1, 0.5)
    worker.begin("claim", 1, 600)
    assert worker.process.wait(50) == -signal.SIGKILL
    until(lambda: read(queue, other).claimable, "the other one to be given back")
    assert (read(queue, late).job.status, read(queue, late).job.error_code) == (JobStatus.FAILED, "timeout")
    assert_all_adds_up(queue.records.client)


def test_jobs_of_one_call_over_its_time_run_again_alone_since_nobody_knows_which_it_was(
    queue: Queue, redis_url: str, start: Callable[..., Worker]
) -> None:
    jobs = [queue.submit(queued()).job for _ in range(2)]
    worker = start(queue, redis_url)
    assert len(worker.do("claim", 2, 0.5)) == 2
    worker.begin("hold_the_lock", 60)
    assert worker.process.wait(50) == -signal.SIGKILL
    for job in jobs:
        until(lambda job=job: read(queue, job).claimable, "the job to be given back")
        assert (read(queue, job).job.attempts, read(queue, job).job.error_code) == (1, "")
    assert len(claim(queue, "two", batches={"ltx-tiny": [(10**12, 4)]})) == 1


def test_a_worker_that_leaves_is_gone_at_once_and_what_it_still_has_is_given_back(
    queue: Queue, redis_url: str, start: Callable[..., Worker]
) -> None:
    job = queue.submit(queued()).job
    worker = start(queue, redis_url)
    worker.do("claim")
    keeper = worker.keeper
    client = queue.records.client
    until(lambda: '"models": ["ltx-tiny"], "loaded": []' in str(client.get("polyreel:worker:one")), "its heartbeat")
    assert client.hkeys("polyreel:residents") == ["one"]
    worker.do("stop")
    assert has_ended(keeper)
    assert (client.exists("polyreel:worker:one"), client.hkeys("polyreel:residents")) == (0, [])
    assert read(queue, job).claimable


def test_a_keeper_is_small(queue: Queue, redis_url: str, start: Callable[..., Worker]) -> None:
    worker = start(queue, redis_url)
    until(lambda: queue.records.client.exists("polyreel:worker:one") == 1, "its heartbeat")
    keeper = worker.keeper
    assert keeper.memory_info().rss < 80_000_000
    assert "torch" not in Path(f"/proc/{keeper.pid}/maps").read_text()
    assert "polyreel keeper" in " ".join(keeper.cmdline())


def test_a_busy_worker_hears_what_is_said_about_its_models_and_a_new_keeper_says_it_again(
    queue: Queue, redis_url: str, start: Callable[..., Worker]
) -> None:
    _, worker, keeper = with_a_job(queue, redis_url, start)
    given = Commands(queue.records.client).give("load", MODEL)
    command = {"id": given.id, "action": "load", "model": MODEL}
    until(lambda: worker.do("heard") == [{"commands": [command], "pins": {}}], "the command")
    Commands(queue.records.client).give("pin", MODEL)
    until(lambda: worker.do("heard")[1:] == [{"commands": [command], "pins": {MODEL: True}}], "the pin")
    keeper.kill()
    until(lambda: worker.do("heard")[2:] == [{"commands": [command], "pins": {MODEL: True}}], "the next keeper")
