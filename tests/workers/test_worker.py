"""The RQ worker: our claims in RQ's loop, what `rq info` shows of it, and nothing that a queue entry may ask for."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import redis
from rq import Callback
from rq import Queue as RQQueue
from rq.command import send_kill_horse_command, send_stop_job_command
from rq.job import Job
from rq.serializers import DefaultSerializer, JSONSerializer
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty
from rq.webhook import Webhook
from rq.worker import Worker as RQWorker

from polyreel.job import JobStatus
from polyreel.leases import Claim
from polyreel.queue import Queue, rq_connection
from polyreel.request import OutputSpec
from polyreel.rq_entry import GENERATE_TASK
from tests.core.jobs import MODEL, REQUEST, claim, queued
from tests.families.quick import Quick
from tests.workers.claims import read, take
from tests.workers.conftest import OwnValkey
from tests.workers.small_worker import WAITS
from tests.workers.test_keeper import has_ended, until
from workers.runner import JobRunner
from workers.worker import make_worker

#: RQ's own time limit and pytest-timeout's both want SIGALRM; the latter takes a thread here.
pytestmark = pytest.mark.timeout(120, method="thread")


@pytest.fixture
def connection(redis_url: str) -> Iterator[redis.Redis]:
    client = rq_connection(redis_url, patient=True)
    yield client
    client.close()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists only if something ran that must not."""
    return tmp_path / "canary"


@pytest.fixture
def ran() -> list[str]:
    """The ids that were claimed and run."""
    return []


@pytest.fixture
def work(connection: redis.Redis, queue: Queue, ran: list[str]) -> Callable[[], None]:
    """Work on all that waits, and only note what it is."""

    def note(claims: Sequence[Claim]) -> None:
        for one in claims:
            ran.append(one.job_id)
            queue.records.advance(one.job_id, one.fence, JobStatus.SUCCEEDED)

    def work() -> None:
        name = f"test-{uuid.uuid4().hex}"
        worker = make_worker(connection, name, [MODEL], claim=lambda: claim(queue, name), run=note)
        worker.work(burst=True, logging_level="CRITICAL")

    return work


def test_what_was_claimed_runs_once_in_this_process(connection: redis.Redis, queue: Queue) -> None:
    seen: list[tuple[int, list[Claim]]] = []
    job = queue.submit(queued()).job
    worker = make_worker(
        connection,
        "one",
        [MODEL],
        claim=lambda: claim(queue),
        run=lambda claims: seen.append((os.getpid(), list(claims))),
    )
    worker.work(burst=True, logging_level="CRITICAL")
    assert seen == [(os.getpid(), [Claim(job.id, 1)])]


def test_the_process_keeps_its_own_title(work: Callable[[], None]) -> None:
    before = Path("/proc/self/cmdline").read_bytes()
    work()
    assert Path("/proc/self/cmdline").read_bytes() == before


def test_a_job_is_stopped_at_its_time_limit(
    connection: redis.Redis, queue: Queue, make_runner: Callable[..., JobRunner]
) -> None:
    job = queue.submit(queued()).job
    runner = make_runner(Quick(after_step=lambda step: time.sleep(60)))
    began = time.monotonic()
    make_worker(
        connection,
        "one",
        [MODEL],
        claim=lambda: take(runner),
        run=lambda claims: runner.run(claims, lambda: UnixSignalDeathPenalty(1, JobTimeoutException)),
    ).work(burst=True, logging_level="CRITICAL")
    assert time.monotonic() - began < 50
    assert (read(queue, job).status, read(queue, job).error_code) == (JobStatus.FAILED, "timeout")


# -- entries that somebody planted who may write to Redis: nothing of them is imported, opened, called or run


def plant(connection: redis.Redis, function: str, *args: object, serializer: type = JSONSerializer, **more) -> Job:
    """Put an entry into the queue that RQ's own workers would take from."""
    job = Job.create(function, args=args, connection=connection, serializer=serializer, origin=MODEL, **more)
    RQQueue(MODEL, connection=connection, serializer=serializer).enqueue_job(job)
    return job


@pytest.mark.parametrize("function", ["os.system", "subprocess.call", "workers.worker.make_worker", GENERATE_TASK])
def test_a_planted_function_is_not_run(
    connection: redis.Redis, queue: Queue, work: Callable[[], None], canary: Path, ran: list[str], function: str
) -> None:
    plant(connection, function, f"touch {canary}")
    good = queue.submit(queued()).job
    work()
    assert not canary.exists()
    assert ran == [good.id]


class Bomb:
    """Runs a command wherever it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickle_is_not_opened(
    connection: redis.Redis, queue: Queue, work: Callable[[], None], canary: Path, ran: list[str]
) -> None:
    plant(connection, GENERATE_TASK, "id", serializer=DefaultSerializer)
    bomb = plant(connection, GENERATE_TASK, "id")
    connection.hset(f"rq:job:{bomb.id}", "data", zlib.compress(pickle.dumps(Bomb(f"touch {canary}"))))
    meta = plant(connection, GENERATE_TASK, "id")
    connection.hset(f"rq:job:{meta.id}", "meta", pickle.dumps(Bomb(f"touch {canary}")))
    good = queue.submit(queued()).job
    connection.hset(f"rq:job:{good.id}", "data", zlib.compress(pickle.dumps(Bomb(f"touch {canary}"))))
    work()
    assert not canary.exists()
    assert ran == [good.id]


@pytest.mark.parametrize("serializer", [JSONSerializer, DefaultSerializer])
def test_what_lies_in_rqs_registries_is_not_called_when_a_worker_starts(
    connection: redis.Redis,
    queue: Queue,
    work: Callable[[], None],
    canary: Path,
    ran: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    serializer: type,
) -> None:
    """RQ's own workers tidy at their start: what ran out in a registry has its failure callback imported and called."""
    (tmp_path / "planted.py").write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()\ndef f(*args): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    asked = Webhook("http://127.0.0.1:9/metadata", "failed")
    callback = Callback("planted.f")
    job = plant(
        connection, "os.system", "true", serializer=serializer, on_success=callback, on_failure=callback,
        on_stopped=callback, webhooks=[asked],
    )  # fmt: skip
    for registry in ("wip", "deferred", "scheduled", "failed", "finished"):
        connection.zadd(f"rq:{registry}:{MODEL}", {f"{job.id}:an-execution": 1})
    good = queue.submit(queued()).job
    work()
    assert not canary.exists()
    assert ran == [good.id]
    assert connection.zscore(f"rq:wip:{MODEL}", f"{job.id}:an-execution") == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("timeout", b"soon"), ("created_at", b"yesterday"), ("meta", b"\xff"), ("data", b"\xff no zlib"), ("status", b"")],
)
def test_an_entry_that_cannot_be_read_ends_neither_this_worker_nor_the_next(
    connection: redis.Redis, queue: Queue, work: Callable[[], None], ran: list[str], field: str, value: bytes
) -> None:
    broken = plant(connection, GENERATE_TASK, "broken")
    connection.hset(f"rq:job:{broken.id}", field, value)
    first = queue.submit(queued()).job
    connection.hset(f"rq:job:{first.id}", field, value)
    work()
    second = queue.submit(queued()).job
    work()
    assert ran == [first.id, second.id]


# -- a process that is told to stop, and what RQ's tools see of it


class Process:
    """The process of `tests.workers.small_worker`."""

    def __init__(self, url: str, tmp_path: Path, *flags: str) -> None:
        self.log = tmp_path / "worker.log"
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "tests.workers.small_worker", url, str(tmp_path / "small"), *flags],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )

    def said(self, text: str) -> bool:
        return text in self.log.read_text()


@pytest.fixture
def start(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return a factory of workers with a family that waits at each step until the file `go` is there."""
    started: list[Process] = []

    def start(*flags: str, url: str = redis_url) -> Process:
        (tmp_path / "small").mkdir(exist_ok=True)
        started.append(Process(url, tmp_path, *flags))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.wait()


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """While this file is not there, steps, and the storing of files where the worker is told so, stand still."""
    return tmp_path / "small" / "go"


def is_idle(connection: redis.Redis) -> bool:
    return connection.hget("rq:worker:small", "state") in ("idle", b"idle")


def rq_info(url: str) -> str:
    command = [sys.executable, "-m", "rq.cli", "info", "--url", url, "--raw"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def state_of_worker(url: str) -> str:
    shown = re.search(r"^worker small \(.*\) (\w+) ltx-tiny", rq_info(url), re.MULTILINE)
    return shown[1] if shown else ""


def test_rq_info_shows_the_worker_its_job_and_the_queue(
    queue: Queue, redis_url: str, connection: redis.Redis, start: Callable[..., Process], go: Path
) -> None:
    process = start()
    until(lambda: state_of_worker(redis_url) == "idle", "the worker to be shown")
    running, waiting = queue.submit(queued()).job, queue.submit(queued()).job
    until(lambda: read(queue, running).status is JobStatus.RUNNING, "the job to run")
    assert f"queue {MODEL} 1" in rq_info(redis_url)
    assert state_of_worker(redis_url) == "busy"
    assert [worker.get_current_job_id() for worker in RQWorker.all(connection=connection)] == [running.id]
    # RQ's own way to stop a job kills the process group of the worker's child; there is none, and nobody is killed.
    send_stop_job_command(connection, running.id, serializer=JSONSerializer)
    send_kill_horse_command(connection, "small")
    until(lambda: process.said("stop-job command ignored"), "the command to come")
    go.touch()
    for job in (running, waiting):
        until(lambda job=job: read(queue, job).status is JobStatus.SUCCEEDED, "the jobs to be done")
    until(lambda: state_of_worker(redis_url) == "idle", "the worker to be idle")
    assert RQWorker.all(connection=connection)[0].get_current_job_id() is None
    process.popen.terminate()
    assert process.popen.wait(60) == 0
    assert RQWorker.all(connection=connection) == []


def test_a_worker_is_shown_with_the_job_whose_file_it_makes(
    queue: Queue, connection: redis.Redis, start: Callable[..., Process], go: Path
) -> None:
    process = start("--hold-storing")
    job = queue.submit(queued()).job
    until(lambda: read(queue, job).status is JobStatus.UPLOADING, "the file to be made")
    [shown] = RQWorker.all(connection=connection)
    assert (shown.get_state(), shown.get_current_job_id()) == ("busy", job.id)
    # Told to stop, it finishes the file first.
    process.popen.terminate()
    until(lambda: process.said("told to stop"), "the signal to be heard")
    go.touch()
    assert process.popen.wait(60) == 0
    assert read(queue, job).status is JobStatus.SUCCEEDED


def test_an_idle_worker_stops_at_once(start: Callable[..., Process], redis_url: str, connection: redis.Redis) -> None:
    process = start("--drain-s", "600")
    until(lambda: is_idle(connection), "the worker to wait for work")
    process.popen.terminate()
    assert process.popen.wait(60) == 0


def test_a_worker_that_is_told_to_stop_finishes_its_job_and_takes_no_other(
    queue: Queue, start: Callable[..., Process], go: Path
) -> None:
    process = start("--drain-s", "600")
    first, second = queue.submit(queued()).job, queue.submit(queued()).job
    until(lambda: read(queue, first).status is JobStatus.RUNNING, "the job to run")
    process.popen.terminate()
    until(lambda: process.said("told to stop"), "the signal to be heard")
    go.touch()
    assert process.popen.wait(60) == 0
    assert (read(queue, first).status, read(queue, first).attempts) == (JobStatus.SUCCEEDED, 1)
    assert (read(queue, second).status, read(queue, second).attempts) == (JobStatus.QUEUED, 0)


@pytest.mark.parametrize("how", ["second signal", "drain is over"])
def test_a_job_that_is_not_done_in_time_is_handed_back_uncounted(
    queue: Queue, start: Callable[..., Process], how: str
) -> None:
    process = start("--drain-s", "600" if how == "second signal" else "0")
    job = queue.submit(queued()).job
    until(lambda: read(queue, job).status is JobStatus.RUNNING, "the job to run")
    process.popen.terminate()
    if how == "second signal":
        until(lambda: process.said("told to stop"), "the signal to be heard")
        time.sleep(1.5)  # RQ takes a second signal within a second for an echo of the first
        process.popen.terminate()
    assert process.popen.wait(60) == 0
    back = queue.records.get(job.id)
    assert back is not None
    assert (back.claimable, back.job.attempts, back.job.status.is_terminal) == (True, 0, False)
    assert queue.records.client.exists("polyreel:worker:small") == 0


@pytest.mark.parametrize("where", [name for name in WAITS if name != "wait_for"])
def test_a_stop_that_a_library_swallows_comes_again_until_the_job_is_handed_back(
    queue: Queue, start: Callable[..., Process], where: str
) -> None:
    process = start("--drain-s", "0", "--wait", where)
    job = queue.submit(queued()).job
    until(lambda: read(queue, job).status is JobStatus.RUNNING, "the job to run")
    process.popen.terminate()
    assert process.popen.wait(60) == 0
    back = queue.records.get(job.id)
    assert back is not None
    assert (back.claimable, back.job.attempts, back.job.status.is_terminal) == (True, 0, False)


def test_a_stop_between_a_claim_and_its_run_hands_the_job_back(queue: Queue, start: Callable[..., Process]) -> None:
    process = start("--stop-after-claim", "--drain-s", "0")
    job = queue.submit(queued()).job
    assert process.popen.wait(60) == 0
    back = queue.records.get(job.id)
    assert back is not None
    assert (back.claimable, back.job.attempts) == (True, 0)


def test_a_stop_that_is_said_twice_cuts_off_nothing_the_second_time(
    connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(connection, "one", [MODEL], claim=list, run=print, jobs=lambda: ["one"], drain_s=600)
    monkeypatch.setattr("rq.worker.base.signal.signal", lambda *_: None)  # this process keeps its own handlers
    monkeypatch.setattr("workers.worker.os.kill", lambda *_: None)
    worker.request_stop(15, None)
    worker.request_force_stop(15, None)  # an echo
    worker._asked_at -= 1.1
    with pytest.raises(SystemExit):
        worker.request_force_stop(15, None)
    worker.request_force_stop(15, None)  # an echo again
    worker.stop.is_heeded = True
    worker._asked_at -= 1.1
    worker.request_force_stop(15, None)
    worker.request_force_stop(2, None)
    for thread in threading.enumerate():
        if thread.name in ("stopping", "drain"):  # else one would tell a client that the next test has closed
            thread.join(10)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_an_encoder_that_hangs_does_not_outlive_its_worker(
    queue: Queue, start: Callable[..., Process], go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    encoder = tmp_path / "encoder"
    encoder.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid.new\nmv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 600\n"
    )
    encoder.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(encoder))
    process = start("--drain-s", "0")
    go.touch()
    queue.submit(queued(replace(REQUEST, outputs=(OutputSpec("mp4", 8.0),))))
    until((tmp_path / "pid").exists, "the encoder to start")
    hung = psutil.Process(int((tmp_path / "pid").read_text()))
    if how == "killed":
        process.popen.kill()
    else:
        process.popen.terminate()
    process.popen.wait(60)
    until(lambda: has_ended(hung), "the encoder to be killed")


# -- Redis is away


def test_a_worker_that_starts_before_redis_waits_for_it(
    own: OwnValkey, start: Callable[..., Process], go: Path
) -> None:
    own.kill()
    process = start(url=own.url)
    go.touch()
    until(lambda: process.said("queue does not answer"), "the worker to notice")
    assert process.popen.poll() is None
    own.start_soon()
    queue = Queue(own.url, retention_s=60, max_open=100, job_timeout_s=60, patient=True)
    job = queue.submit(queued()).job
    until(lambda: read(queue, job).status is JobStatus.SUCCEEDED, "the job to be done")


def test_an_idle_worker_goes_on_when_redis_is_back(own: OwnValkey, start: Callable[..., Process], go: Path) -> None:
    process = start(url=own.url)
    go.touch()
    queue = Queue(own.url, retention_s=60, max_open=100, job_timeout_s=60, patient=True)
    until(lambda: is_idle(queue.records.client), "the worker to wait for work")
    own.kill()
    until(lambda: process.said("queue does not answer"), "the worker to notice")
    own.start_soon()
    job = queue.submit(queued()).job
    until(lambda: read(queue, job).status is JobStatus.SUCCEEDED, "the job to be done")
    assert process.popen.poll() is None


def test_an_idle_worker_stops_while_redis_is_away(own: OwnValkey, start: Callable[..., Process]) -> None:
    process = start("--drain-s", "600", url=own.url)
    until(lambda: is_idle(rq_connection(own.url, patient=True)), "the worker to wait for work")
    own.kill()
    process.popen.terminate()
    assert process.popen.wait(60) == 0


def test_what_rqs_loop_asks_of_redis_does_not_end_the_worker(
    connection: redis.Redis, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away(name: str) -> Callable[..., None]:
        def ask(*_: object, **__: object) -> None:
            asked.append(name)
            raise redis.ConnectionError("away")

        return ask

    jobs = [queue.submit(queued()).job for _ in range(2)]
    done: list[str] = []

    def run(claims: Sequence[Claim]) -> None:
        done.extend(one.job_id for one in claims)
        for name in ("heartbeat", "check_for_suspension", "set_shutdown_requested_date"):
            monkeypatch.setattr(f"rq.SimpleWorker.{name}", away(name))

    worker = make_worker(connection, "one", [MODEL], claim=lambda: claim(queue), run=run)
    worker.work(burst=True, logging_level="CRITICAL")
    worker.set_shutdown_requested_date()
    assert done == [job.id for job in jobs]
    assert set(asked) == {"heartbeat", "check_for_suspension", "set_shutdown_requested_date"}


def test_a_worker_starts_while_redis_is_full(own: OwnValkey, start: Callable[..., Process], go: Path) -> None:
    queue = Queue(own.url, retention_s=60, max_open=100, job_timeout_s=60, patient=True)
    job = queue.submit(queued()).job
    queue.records.client.config_set("maxmemory", "1")
    process = start(url=own.url)
    go.touch()
    until(lambda: process.said("rq info does not show this worker"), "RQ to be refused")
    assert process.popen.poll() is None
    queue.records.client.config_set("maxmemory", "0")
    until(lambda: read(queue, job).status is JobStatus.SUCCEEDED, "the job to be done")
    process.popen.terminate()
    assert process.popen.wait(60) == 0
