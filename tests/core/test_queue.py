"""The queue: what is acknowledged is in RQ's list, and what fell out of it comes back."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from rq.job import Job
from rq.serializers import JSONSerializer

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.errors import QueueUnavailable, TooManyJobs
from polyreel.job import JobStatus, VideoJob
from polyreel.queue import GENERATE_TASK, Queue
from polyreel.records import StoredJob
from tests.core.jobs import queued

WAITING = "rq:queue:polyreel"


def connect_queue(url: str, max_open: int = 1000) -> Queue:
    return Queue(url, retention_s=60, max_open=max_open, job_timeout_s=600, patient=False)


@pytest.fixture
def queue(redis_url: str) -> Queue:
    return connect_queue(redis_url)


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """Redis as RQ sees it, in bytes."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


def waiting(raw: redis.Redis) -> list[str]:
    return [job_id.decode() for job_id in raw.lrange(WAITING, 0, -1)]


def read(queue: Queue, job: VideoJob) -> StoredJob:
    stored = queue.records.get(job.id)
    assert stored is not None
    return stored


_hours = itertools.count(1)


def watch(queue: Queue, *, seconds: int = 9) -> list[str]:
    """Reconcile every 3 s of the watcher's own clock, the first time after an hour; return all that was repaired."""
    start = next(_hours) * 3600.0
    return [job_id for passed in range(0, seconds + 1, 3) for job_id in queue.reconcile(start + passed)]


def submit(queue: Queue) -> VideoJob:
    return queue.submit(queued()).job


def take(queue: Queue, raw: redis.Redis, worker: str = "one") -> VideoJob:
    """Submit a job and let a worker pop and claim it."""
    job = submit(queue)
    raw.lrem(WAITING, 0, job.id)
    assert queue.records.claim(job.id, worker, time.time())
    return job


def test_a_submitted_job_is_one_id_in_the_list_and_one_name_and_id_as_json(queue: Queue, raw: redis.Redis) -> None:
    job = submit(queue)
    assert waiting(raw) == [job.id]
    entry = raw.hgetall(f"rq:job:{job.id}")
    assert json.loads(zlib.decompress(entry[b"data"])) == ["polyreel.generate", None, [job.id], {}]
    assert entry[b"timeout"] == b"600"
    assert b"sunset" not in b"".join(entry.values()), "the prompt is in the record alone"


def test_submitting_an_id_twice_leaves_one_entry(queue: Queue, raw: redis.Redis) -> None:
    job = queued()
    first, second = queue.submit(job), queue.submit(job)
    assert first.number == second.number
    assert waiting(raw) == [job.id]
    assert queue.records.open_ids() == [job.id]


def test_jobs_wait_in_the_order_of_their_submission(queue: Queue, raw: redis.Redis) -> None:
    jobs = [submit(queue) for _ in range(5)]
    assert waiting(raw) == [job.id for job in jobs]


def test_a_full_queue_enqueues_nothing(redis_url: str, raw: redis.Redis) -> None:
    queue = connect_queue(redis_url, max_open=1)
    first = submit(queue)
    with pytest.raises(TooManyJobs):
        submit(queue)
    assert waiting(raw) == [first.id]


def test_a_lost_entry_comes_back(queue: Queue, raw: redis.Redis) -> None:
    job = submit(queue)
    raw.delete(WAITING)
    assert watch(queue) == [job.id]
    assert waiting(raw) == [job.id]


def test_a_record_whose_enqueue_never_happened_is_enqueued(queue: Queue, raw: redis.Redis) -> None:
    job = queue.records.create(queued(), max_open=10).job
    assert watch(queue) == [job.id]
    entry = Job.fetch(job.id, connection=raw, serializer=JSONSerializer)
    assert (entry.func_name, entry.args) == (GENERATE_TASK, [job.id])


def test_a_job_that_is_unattended_for_less_than_eight_seconds_is_left_alone(queue: Queue, raw: redis.Redis) -> None:
    """A live worker may be between popping the id and claiming the job, or between a claim and its next heartbeat."""
    submit(queue)
    raw.delete(WAITING)
    assert watch(queue, seconds=6) == []
    take(queue, raw)
    assert watch(queue, seconds=6) == []


def test_what_was_not_watched_does_not_count(queue: Queue, raw: redis.Redis) -> None:
    """After an outage every heartbeat has run out: whoever comes back first must not take the others for dead."""
    take(queue, raw)
    assert [queue.reconcile(now) for now in (100.0, 106.0, 146.0, 152.0)] == [[], [], [], []]
    queue.records.beat("one", {})
    assert queue.reconcile(155.0) == []


def test_the_clocks_of_other_machines_do_not_count(queue: Queue, raw: redis.Redis) -> None:
    job = submit(queue)
    raw.delete(WAITING)
    assert queue.records.claim(job.id, "one", time.time() - 3600)
    queue.records.beat("one", {"job": job.id})
    assert watch(queue) == []


def test_a_new_claim_is_watched_anew(queue: Queue, raw: redis.Redis) -> None:
    job = take(queue, raw)
    assert [queue.reconcile(now) for now in (100.0, 106.0)] == [[], []]
    assert queue.records.release(job.id, 1, counted=True)
    assert queue.records.claim(job.id, "two", time.time())
    assert queue.reconcile(109.0) == []


def test_a_waiting_job_is_left_alone(queue: Queue, raw: redis.Redis) -> None:
    job = submit(queue)
    assert watch(queue) == []
    assert waiting(raw) == [job.id]


def test_a_live_workers_job_is_left_alone(queue: Queue, raw: redis.Redis) -> None:
    job = take(queue, raw)
    queue.records.beat("one", {"job": job.id})
    assert watch(queue, seconds=60) == []
    assert read(queue, job).job.worker == "one"
    assert waiting(raw) == []


def test_a_job_that_its_live_worker_dropped_is_enqueued_again(queue: Queue, raw: redis.Redis) -> None:
    job = take(queue, raw)
    queue.records.beat("one", {"job": ""})
    assert watch(queue) == [job.id]


def test_a_dead_workers_job_is_enqueued_again(queue: Queue, raw: redis.Redis) -> None:
    job = take(queue, raw)
    queue.records.advance(job.id, 1, JobStatus.RUNNING, progress=40)
    assert watch(queue) == [job.id]
    assert waiting(raw) == [job.id]
    stored = read(queue, job)
    assert (stored.claimable, stored.job.attempts, stored.job.progress) == (True, 1, 40)
    assert not queue.records.advance(job.id, 1, JobStatus.SUCCEEDED), "should it not be dead after all"


def test_a_job_whose_third_worker_died_fails(queue: Queue, raw: redis.Redis) -> None:
    job = submit(queue)
    for worker in ("one", "two"):
        raw.delete(WAITING)
        assert queue.records.claim(job.id, worker, time.time())
        assert watch(queue) == [job.id]
    raw.delete(WAITING)
    assert queue.records.claim(job.id, "three", time.time())
    assert watch(queue) == []
    failed = read(queue, job).job
    assert (failed.status, failed.error_code, failed.attempts) == (JobStatus.FAILED, "worker_died", 3)
    assert waiting(raw) == []
    assert queue.records.open_ids() == []


def test_a_job_that_was_handed_back_keeps_its_attempts(queue: Queue, raw: redis.Redis) -> None:
    job = take(queue, raw)
    assert queue.records.release(job.id, 1, counted=False)
    assert watch(queue) == [job.id]
    assert read(queue, job).job.attempts == 0


def test_a_job_that_was_handed_back_meanwhile_is_not_given_up(queue: Queue, raw: redis.Redis) -> None:
    job = submit(queue)
    for worker in ("one", "two", "three"):
        fence = queue.records.claim(job.id, worker, time.time())
        if worker != "three":
            queue.records.release(job.id, fence, counted=True)
    as_read = read(queue, job)
    queue.records.release(job.id, fence, counted=False)
    assert not queue.requeue(as_read)
    assert read(queue, job).job.status is JobStatus.LOADING
    assert read(queue, job).claimable


def test_an_entry_that_rq_marked_as_failed_is_replaced(queue: Queue, raw: redis.Redis) -> None:
    job = take(queue, raw)
    Job.fetch(job.id, connection=raw, serializer=JSONSerializer).set_status("failed")
    assert watch(queue) == [job.id]
    assert raw.hget(f"rq:job:{job.id}", "status") == b"queued"


def test_an_open_id_without_a_record_is_forgotten(queue: Queue, raw: redis.Redis) -> None:
    job = submit(queue)
    raw.delete(f"polyreel:job:{job.id}")
    assert watch(queue) == []
    assert queue.records.open_ids() == []


def test_a_record_that_cannot_be_read_does_not_keep_others_from_being_repaired(queue: Queue, raw: redis.Redis) -> None:
    broken, lost = submit(queue), submit(queue)
    raw.hset(f"polyreel:job:{broken.id}", "request", '{"from": "another version"}')
    raw.delete(WAITING)
    assert watch(queue) == [lost.id]


def test_a_queue_that_is_not_there_is_said_to_be_unavailable_at_once(tmp_path: Path) -> None:
    queue = connect_queue(f"unix://{tmp_path}/nobody.sock")
    began = time.monotonic()
    with pytest.raises(QueueUnavailable) as refused:
        submit(queue)
    assert time.monotonic() - began < 3.0
    assert str(refused.value) == "The queue does not answer right now. Try again in a few seconds."


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = start_embedded(tmp_path)
    yield broker
    os.kill(broker.process.pid, signal.SIGCONT)
    broker.stop()


@pytest.mark.parametrize("connected_before", [True, False])
def test_a_queue_that_hangs_is_said_to_be_unavailable_within_three_seconds(
    own_broker: EmbeddedBroker, connected_before: bool
) -> None:
    queue = connect_queue(own_broker.url)
    if connected_before:
        submit(queue)
    os.kill(own_broker.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(QueueUnavailable):
        submit(queue)
    assert time.monotonic() - began < 3.1


def test_a_full_memory_is_said_in_those_words(own_broker: EmbeddedBroker) -> None:
    queue = connect_queue(own_broker.url)
    with redis.Redis.from_url(own_broker.url) as client:
        client.config_set("maxmemory", "1")
    with pytest.raises(QueueUnavailable, match=r"^The queue's memory is full; nothing was accepted"):
        submit(queue)
