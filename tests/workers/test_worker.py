"""The RQ worker: runs our one task in its own process, and nothing else that a queue entry may ask for."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import redis
from rq import Callback
from rq import Queue as RQQueue
from rq.job import Job
from rq.serializers import DefaultSerializer, JSONSerializer
from rq.webhook import Webhook

from polyreel.job import JobStatus
from polyreel.queue import GENERATE_TASK, QUEUE_NAME, Queue, rq_connection
from tests.core.jobs import queued
from tests.families.quick import Quick
from workers.runner import JobRunner
from workers.worker import Heartbeat, make_worker

#: RQ's own time limit and pytest-timeout's both want SIGALRM; the latter takes a thread here.
pytestmark = pytest.mark.timeout(60, method="thread")


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
    """The ids that our task was called with."""
    return []


@pytest.fixture
def work(connection: redis.Redis, ran: list[str]) -> Callable[[], None]:
    """Work on all that waits, with a task that only notes its argument."""

    def work() -> None:
        make_worker(connection, f"test-{uuid.uuid4().hex}", {GENERATE_TASK: ran.append}).work(
            burst=True, logging_level="CRITICAL"
        )

    return work


def plant(connection: redis.Redis, function: str, *args: object, serializer: type = JSONSerializer, **more) -> Job:
    """Put an entry into the queue as anyone could who may write to Redis."""
    job = Job.create(function, args=args, connection=connection, serializer=serializer, origin=QUEUE_NAME, **more)
    RQQueue(QUEUE_NAME, connection=connection, serializer=serializer).enqueue_job(job)
    return job


def status(connection: redis.Redis, job: Job) -> str:
    return (connection.hget(f"rq:job:{job.id}", "status") or b"").decode()


def test_our_task_runs_once_in_this_process(connection: redis.Redis, redis_url: str) -> None:
    seen: list[tuple[int, str]] = []
    queue = Queue(redis_url, retention_s=60, max_open=10, job_timeout_s=60, patient=True)
    job = queue.submit(queued()).job
    queue.submit(job)
    make_worker(connection, "one", {GENERATE_TASK: lambda job_id: seen.append((os.getpid(), job_id))}).work(
        burst=True, logging_level="CRITICAL"
    )
    assert seen == [(os.getpid(), job.id)]
    assert connection.llen("rq:queue:polyreel") == 0


@pytest.mark.parametrize("function", ["os.system", "subprocess.call", "workers.worker.make_worker", "generate"])
def test_a_planted_function_is_not_run(
    connection: redis.Redis, work: Callable[[], None], canary: Path, ran: list[str], function: str
) -> None:
    job = plant(connection, function, f"touch {canary}")
    work()
    assert not canary.exists()
    assert ran == []
    assert status(connection, job) == "failed"


def test_a_planted_module_is_not_imported(
    connection: redis.Redis,
    work: Callable[[], None],
    canary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "planted.py").write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()\ndef f(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    plant(connection, "planted.f")
    plant(connection, GENERATE_TASK, "id", on_success=Callback("planted.f"))
    plant(connection, "planted.f", on_failure=Callback("planted.f"), on_stopped=Callback("planted.f"))
    work()
    assert not canary.exists()


def test_planted_callbacks_are_not_called(
    connection: redis.Redis, work: Callable[[], None], canary: Path, ran: list[str]
) -> None:
    callback = Callback("os.system")
    good = plant(connection, GENERATE_TASK, "id", on_success=callback, on_failure=callback)
    bad = plant(connection, "os.system", f"touch {canary}", on_failure=callback)
    work()
    assert not canary.exists()
    assert ran == ["id"]
    assert (status(connection, good), status(connection, bad)) == ("finished", "failed")


def test_a_planted_webhook_is_not_called(connection: redis.Redis, work: Callable[[], None], ran: list[str]) -> None:
    asked: list[str] = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Inside) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/metadata"
        hooks = [Webhook(url, "finished"), Webhook(url, "failed")]
        plant(connection, GENERATE_TASK, "id", webhooks=hooks)
        plant(connection, "os.getpid", webhooks=hooks)
        work()
        server.shutdown()
    assert ran == ["id"]
    assert asked == []


class Bomb:
    """Runs a command wherever it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickle_is_not_opened(
    connection: redis.Redis, work: Callable[[], None], canary: Path, ran: list[str]
) -> None:
    plain = plant(connection, GENERATE_TASK, "id", serializer=DefaultSerializer)
    bomb = plant(connection, GENERATE_TASK, "id")
    connection.hset(f"rq:job:{bomb.id}", "data", zlib.compress(pickle.dumps(Bomb(f"touch {canary}"))))
    meta = plant(connection, GENERATE_TASK, "id-of-meta")
    connection.hset(f"rq:job:{meta.id}", "meta", pickle.dumps(Bomb(f"touch {canary}")))
    work()
    assert not canary.exists()
    assert "id" not in ran
    assert (status(connection, plain), status(connection, bomb)) == ("failed", "failed")


def test_a_job_runs_after_entries_that_were_refused(
    connection: redis.Redis, work: Callable[[], None], ran: list[str]
) -> None:
    broken = plant(connection, GENERATE_TASK, "broken")
    connection.hset(f"rq:job:{broken.id}", "data", b"\xff not zlib")
    plant(connection, "os.system", "true")
    plant(connection, GENERATE_TASK, "good")
    work()
    assert ran == ["good"]


def test_a_job_is_stopped_at_its_time_limit(
    redis_url: str, connection: redis.Redis, make_runner: Callable[..., JobRunner]
) -> None:
    queue = Queue(redis_url, retention_s=60, max_open=10, job_timeout_s=1, patient=True)
    job = queue.submit(queued()).job
    runner = make_runner(Quick(after_step=lambda step: time.sleep(20)))
    began = time.monotonic()
    make_worker(connection, "one", {GENERATE_TASK: runner.run}).work(burst=True, logging_level="CRITICAL")
    assert time.monotonic() - began < 10
    stored = queue.records.get(job.id)
    assert stored is not None
    assert (stored.job.status, stored.job.error_code) == (JobStatus.FAILED, "timeout")


def test_the_process_keeps_its_own_title(connection: redis.Redis) -> None:
    before = Path("/proc/self/cmdline").read_bytes()
    make_worker(connection, "one", {}).work(burst=True, logging_level="CRITICAL")
    assert Path("/proc/self/cmdline").read_bytes() == before


def test_a_heartbeat_is_seen_at_once_and_withdrawn_at_the_end(queue: Queue) -> None:
    heartbeat = Heartbeat(queue, "one", lambda: {"models": ["ltx"]})
    heartbeat.start()
    deadline = time.monotonic() + 5
    while not queue.records.is_alive("one") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert queue.records.client.get("polyreel:worker:one") == '{"models": ["ltx"]}'
    heartbeat.stop()
    assert not queue.records.is_alive("one")


def test_a_heartbeat_repairs_the_queue(queue: Queue, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker.BEAT_S", 0.1)
    monkeypatch.setattr("polyreel.queue.WATCH_S", 0.5)
    job = queue.submit(queued()).job
    connection.delete("rq:queue:polyreel")
    assert queue.records.claim(job.id, "dead", time.time())
    heartbeat = Heartbeat(queue, "one", dict)
    heartbeat.start()
    deadline = time.monotonic() + 10
    while not connection.llen("rq:queue:polyreel") and time.monotonic() < deadline:
        time.sleep(0.01)
    heartbeat.stop()
    assert connection.lrange("rq:queue:polyreel", 0, -1) == [job.id.encode()]


@pytest.mark.parametrize(("field", "value"), [("timeout", b"soon"), ("created_at", b"yesterday"), ("meta", b"\xff")])
def test_an_entry_that_cannot_be_read_ends_neither_this_worker_nor_the_next(
    connection: redis.Redis, work: Callable[[], None], ran: list[str], field: str, value: bytes
) -> None:
    broken = plant(connection, GENERATE_TASK, "broken")
    connection.hset(f"rq:job:{broken.id}", field, value)
    plant(connection, GENERATE_TASK, "first")
    work()
    plant(connection, GENERATE_TASK, "second")
    work()
    assert [job for job in ran if job != "broken"] == ["first", "second"]
    assert connection.llen("rq:queue:polyreel") == 0


def test_a_job_that_does_not_heed_its_time_limit_ends_the_process(redis_url: str) -> None:
    script = (
        "import sys, time\n"
        "from polyreel.queue import Queue\n"
        "from workers.worker import Heartbeat\n"
        "queue = Queue(sys.argv[1], retention_s=60, max_open=10, job_timeout_s=1, patient=True)\n"
        "began = time.monotonic()\n"
        "Heartbeat(queue, 'one', dict, is_stuck=lambda: time.monotonic() - began > 0.5).start()\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script, redis_url], capture_output=True, timeout=30, check=False)
    assert done.returncode == 70
    assert b"inside a native call" in done.stdout + done.stderr
