"""RQ's tools on our queue: whatever reads RQ's keys sees what is true, and nothing that is planted there is ever run.

The names of the keys are RQ's internals, so its version is pinned here too.
"""

from __future__ import annotations

import os
import pickle
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import rq
import rq.registry
from click.testing import CliRunner
from rq import Queue as RQQueue
from rq.cli import main as rq_command
from rq.executions import Execution
from rq.job import Job
from rq.job import JobStatus as RQStatus
from rq.registry import BaseRegistry, CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.worker import Worker

from polyreel import scripts
from polyreel.job import JobStatus
from polyreel.queue import Queue
from tests.core.jobs import MODEL, assert_all_adds_up, claim, open_queue, order, queued, read, reap, run_out, take


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    queue.records.client.close()


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """Redis as RQ sees it, in bytes."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def model_queue(raw: redis.Redis) -> RQQueue:
    """RQ's view of a model's queue."""
    return RQQueue(MODEL, connection=raw, serializer=JSONSerializer)


def submit(queue: Queue, **fields: object) -> str:
    return queue.submit(queued(**fields)).job.id


def fetch(raw: redis.Redis, job_id: str) -> Job:
    return Job.fetch(job_id, connection=raw, serializer=JSONSerializer)


def registry(kind: type[BaseRegistry], model_queue: RQQueue) -> BaseRegistry:
    return kind(queue=model_queue)


def test_the_version_of_rq_is_pinned() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert [one for one in project["project"]["dependencies"] if one.startswith("rq")] == ["rq>=2.12,<2.13"]
    assert rq.__version__.startswith("2.12.")


def test_the_keys_are_called_as_rq_calls_them(raw: redis.Redis, model_queue: RQQueue) -> None:
    execution = Execution("4", "a-job", raw)
    assert {
        "RQ_QUEUES": RQQueue.redis_queues_keys,
        "RQ_QUEUE": RQQueue.redis_queue_namespace_prefix,
        "RQ_JOB": Job.redis_job_namespace_prefix,
        "RQ_WIP": StartedJobRegistry.key_template.format(""),
        "RQ_EXECUTION": execution.key.removesuffix("a-job:4"),
        "RQ_EXECUTIONS": "rq:executions:",
        "RQ_RESULTS": Result.get_key(""),
        "RQ_WORKER": Worker.redis_worker_namespace_prefix,
        "RQ_NOTHING": "bnVsbA==",
    } == scripts._RQ
    assert {name: end[:3] for name, end in scripts._RQ_ENDS.items()} == {
        "succeeded": ("finished", FinishedJobRegistry.key_template.format(""), Result.Type.SUCCESSFUL.value),
        "failed": ("failed", FailedJobRegistry.key_template.format(""), Result.Type.FAILED.value),
        "cancelled": ("canceled", CanceledJobRegistry.key_template.format(""), None),
    }
    assert model_queue.key == f"rq:queue:{MODEL}"
    assert execution.composite_key == "a-job:4"


def test_rq_sees_a_waiting_job(queue: Queue, raw: redis.Redis, model_queue: RQQueue) -> None:
    first, second = submit(queue), submit(queue)
    assert (model_queue.job_ids, model_queue.count) == ([first, second], 2)
    assert RQQueue.all(connection=raw) == [model_queue]
    job = fetch(raw, first)
    assert (job.get_status(), job.origin, job.timeout) == (RQStatus.QUEUED, MODEL, 600)
    assert (job.func_name, job.args, job.kwargs) == ("polyreel.generate", [first], {})
    assert job.retries_left == 2
    assert job.get_position() == 0
    assert job.enqueued_at is not None
    assert "sunset" not in repr(raw.hgetall(f"rq:job:{first}")), "the prompt is in the record alone"


def test_rq_sees_a_claimed_job(queue: Queue, raw: redis.Redis, model_queue: RQQueue) -> None:
    taken = take(queue)
    job = fetch(raw, taken.job_id)
    assert (job.get_status(), job.worker_name) == (RQStatus.STARTED, "one")
    assert job.started_at is not None
    assert (model_queue.count, registry(StartedJobRegistry, model_queue).get_job_ids()) == (0, [taken.job_id])
    [execution] = job.get_executions()
    assert (execution.job_id, execution.worker_name) == (taken.job_id, "one")
    assert execution.created_at <= execution.last_heartbeat
    before = execution.last_heartbeat
    queue.leases.renew("one", [taken])
    assert job.get_executions()[0].last_heartbeat > before


@pytest.mark.parametrize(
    ("end", "status", "kind", "ttl"),
    [
        ("succeeded", RQStatus.FINISHED, FinishedJobRegistry, 3600),
        ("failed", RQStatus.FAILED, FailedJobRegistry, 86400),
        ("cancelled", RQStatus.CANCELED, CanceledJobRegistry, 3600),
    ],
)
def test_rq_sees_an_end(
    queue: Queue,
    raw: redis.Redis,
    model_queue: RQQueue,
    end: str,
    status: RQStatus,
    kind: type[BaseRegistry],
    ttl: int,
) -> None:
    taken = take(queue)
    fields = {"error_message": "The GPU has too little memory."} if end == "failed" else {}
    assert queue.records.advance(taken.job_id, taken.fence, JobStatus(end), "one", **fields)
    job = fetch(raw, taken.job_id)
    assert (job.get_status(), job.worker_name) == (status, None)
    assert job.ended_at is not None
    for each in (StartedJobRegistry, FinishedJobRegistry, FailedJobRegistry, CanceledJobRegistry):
        assert registry(each, model_queue).get_job_ids() == ([taken.job_id] if each is kind else [])
    result = job.latest_result()
    if end == "succeeded":
        assert (result.type, result.return_value) == (Result.Type.SUCCESSFUL, None)
    elif end == "failed":
        assert (result.type, result.exc_string) == (Result.Type.FAILED, "The GPU has too little memory.")
    else:
        assert result is None
    assert job.get_executions() == []
    keys = [key for key in raw.scan_iter("rq:*") if taken.job_id.encode() in key]
    assert {ttl - 60 < raw.ttl(key) <= ttl for key in keys} == {True}


def test_rq_sees_a_job_that_waits_again(queue: Queue, raw: redis.Redis, model_queue: RQQueue) -> None:
    taken = take(queue)
    run_out(queue.records.client, taken.job_id)
    reap(queue.leases)
    job = fetch(raw, taken.job_id)
    assert (job.get_status(), job.worker_name, job.retries_left) == (RQStatus.QUEUED, None, 1)
    assert (model_queue.job_ids, registry(StartedJobRegistry, model_queue).count) == ([taken.job_id], 0)
    assert job.get_executions() == []


@pytest.mark.parametrize("ahead_s", [120, -120])
def test_no_tool_of_rq_takes_a_job_from_its_worker_whatever_its_clock(
    queue: Queue,
    raw: redis.Redis,
    model_queue: RQQueue,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    ahead_s: int,
) -> None:
    """RQ's registries tidy up as they are read, by the reader's clock."""
    taken, waiting = take(queue), submit(queue)
    right = rq.registry.current_timestamp
    monkeypatch.setattr(rq.registry, "current_timestamp", lambda: right() + ahead_s)
    assert registry(StartedJobRegistry, model_queue).count == 1
    registry(StartedJobRegistry, model_queue).cleanup()
    assert model_queue.failed_job_registry.count == 0
    said = CliRunner().invoke(rq_command, ["info", "--url", redis_url, "--raw"])
    assert said.exit_code == 0, said.output
    assert f"queue {MODEL} 1, 1 executing, 0 finished, 0 failed" in said.output
    assert queue.leases.renew("one", [taken]) == ["ok"]
    assert fetch(raw, taken.job_id).get_status() is RQStatus.STARTED
    assert order(queue.records.client) == [waiting]
    assert_all_adds_up(queue.records.client)


def test_rqs_registries_do_not_grow_for_ever(queue: Queue, raw: redis.Redis) -> None:
    """RQ tidies them when it is asked, and perhaps nobody ever asks."""
    for kind in ("finished", "failed", "canceled"):
        raw.zadd(f"rq:{kind}:{MODEL}", {"of last week": time.time() - 600_000})
    for end in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED):
        taken = take(queue)
        queue.records.advance(taken.job_id, taken.fence, end)
    assert [raw.zcard(f"rq:{kind}:{MODEL}") for kind in ("finished", "failed", "canceled")] == [1, 1, 1]


def test_a_registered_worker_stays_while_its_leases_are_renewed(queue: Queue, raw: redis.Redis) -> None:
    worker = Worker([RQQueue(MODEL, connection=raw)], name="one", connection=raw)
    worker.register_birth()
    raw.expire(worker.key, 30)
    taken = take(queue)
    queue.leases.renew("one", [taken])
    assert 400 < raw.ttl(worker.key) <= 480
    assert [one.name for one in Worker.all(connection=raw)] == ["one"]
    queue.leases.renew("two", [])
    assert not raw.exists("rq:worker:two"), "who is not registered is not made up"


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["a pickle", "the name of a function"])
def test_what_is_planted_in_rqs_list_is_never_run(
    queue: Queue, raw: redis.Redis, model_queue: RQQueue, tmp_path: Path, how: str
) -> None:
    """A claim reads our order and our records; RQ's list is only shown."""
    trap = tmp_path / "sprung"
    mine = submit(queue)
    if how == "a pickle":
        planted = RQQueue(MODEL, connection=raw).enqueue(os.mkdir, Trap(trap)).id
        raw.hset(f"rq:job:{planted}", "data", pickle.dumps(Trap(trap)))
    else:
        planted = model_queue.enqueue("os.mkdir", str(trap)).id
    raw.lrem(model_queue.key, 0, planted)
    raw.lpush(model_queue.key, planted)
    assert [one.job_id for _ in range(3) for one in claim(queue)] == [mine]
    raw.hset(f"rq:job:{mine}", "data", pickle.dumps(Trap(trap)))
    assert queue.leases.repair() == {planted: "taken out of the list: it does not wait"}
    assert model_queue.job_ids == []
    assert read(queue, mine).job.request.model == MODEL
    assert not trap.exists()
