"""Job records: what a worker writes into them, what the next reader finds, and what is learned beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from polyreel.admission import Rates
from polyreel.job import JobStatus
from polyreel.queue import Queue
from polyreel.records import Records, StoredJob, hidden_from, parse_rates
from tests.core.jobs import assert_all_adds_up, claim, open_queue, queued, read, redis_time, take

ENDS = [status for status in JobStatus if status.is_terminal]


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    assert_all_adds_up(queue.records.client)
    queue.records.client.close()


def test_a_new_record_reads_back(queue: Queue) -> None:
    job = queued(vendor={"meta": {"prompt": "é"}})
    created = queue.records.create(job, max_open=1000)
    assert read(queue, job.id) == created
    assert created == StoredJob(replace(job, created_at=created.job.created_at), created.number, 0, True)


def test_there_is_no_record_of_an_unknown_id(queue: Queue) -> None:
    assert queue.records.get("7b1e0000-0000-4000-8000-000000000000") is None


def test_what_a_worker_writes_reads_back(queue: Queue) -> None:
    taken = take(queue)
    assert queue.records.advance(
        taken.job_id, taken.fence, JobStatus.RUNNING, "one", stage="denoising", step=3, total_steps=8, progress=40
    )
    assert queue.records.advance(
        taken.job_id, taken.fence, JobStatus.SUCCEEDED, "one", progress=100, timings={"load": 0.5}, receipt={"seed": 42}
    )
    job = read(queue, taken.job_id).job
    assert (job.status, job.progress, job.step, job.total_steps, job.stage) == (JobStatus.SUCCEEDED, 100, 3, 8, "")
    assert (job.timings, job.receipt, job.worker) == ({"load": 0.5}, {"seed": 42}, "one")


def test_progress_never_decreases(queue: Queue) -> None:
    taken = take(queue)
    seen = []
    for progress in (5, 40, 20, 40, 39, 85, 0):
        assert queue.records.advance(taken.job_id, taken.fence, JobStatus.RUNNING, "one", progress=progress)
        seen.append(read(queue, taken.job_id).job.progress)
    assert seen == [5, 40, 40, 40, 40, 85, 85]


def test_a_job_ends_at_the_time_of_redis_whatever_the_worker_says(queue: Queue) -> None:
    taken = take(queue)
    before = redis_time(queue.records.client)
    assert queue.records.advance(taken.job_id, taken.fence, JobStatus.FAILED, "one", ended_at=1.0, error_code="oom")
    job = read(queue, taken.job_id).job
    assert before <= job.ended_at <= redis_time(queue.records.client)
    assert 0 <= job.seconds_taken < 60


def test_a_change_that_needs_no_claim_is_made_to_any_open_job(queue: Queue) -> None:
    job = queue.records.create(queued(), 1000).job
    assert queue.records.advance(job.id, None, JobStatus.QUEUED, not_resumable="FreeInit")
    assert queue.records.advance(job.id, None, JobStatus.FAILED, error_code="model_unavailable", error_message="gone")
    ended = read(queue, job.id).job
    assert (ended.not_resumable, ended.error_code, ended.error_message) == ("FreeInit", "model_unavailable", "gone")
    assert not queue.records.advance(job.id, None, JobStatus.FAILED, error_message="again")
    assert not queue.records.advance("no such job", None, JobStatus.FAILED)
    assert claim(queue) == []


def test_a_write_to_a_job_that_is_not_there_leaves_nothing_behind(queue: Queue) -> None:
    assert not queue.records.advance("no such job", 1, JobStatus.SUCCEEDED, "one", progress=100)
    assert not queue.records.release("no such job", 1, counted=True)
    assert queue.leases.renew("one", []) == []
    assert queue.records.client.keys() == []


@pytest.mark.parametrize("end", ENDS)
def test_only_a_record_that_ended_expires_and_its_number_with_it(queue: Queue, end: JobStatus) -> None:
    client = queue.records.client
    taken = take(queue)
    record, number = f"polyreel:job:{taken.job_id}", f"polyreel:number:{read(queue, taken.job_id).number}"
    queue.records.advance(taken.job_id, taken.fence, JobStatus.UPLOADING, "one", progress=95)
    assert (client.ttl(record), client.ttl(number)) == (-1, -1)
    queue.records.advance(taken.job_id, taken.fence, end, "one")
    assert 50 <= client.ttl(record) <= 60
    assert 50 <= client.ttl(number) <= 60


def test_open_jobs_are_those_that_have_not_ended_the_oldest_first(queue: Queue) -> None:
    jobs = [queue.records.create(queued(), 1000).job.id for _ in range(3)]
    assert queue.records.open_ids() == jobs
    [taken] = claim(queue)
    assert queue.records.open_ids() == jobs
    queue.records.advance(taken.job_id, taken.fence, JobStatus.FAILED, "one")
    assert queue.records.open_ids() == jobs[1:]
    queue.cancel(jobs[2])
    assert queue.records.open_ids() == jobs[1:2]


def test_the_mean_of_a_models_seconds_moves_towards_the_newest(records: Records) -> None:
    records.learn_seconds("ltx", 10.0)
    records.learn_seconds("ltx", 20.0)
    assert records.client.hgetall("polyreel:seconds") == {"ltx": "13.000"}


def test_a_models_rates_move_towards_the_newest(records: Records) -> None:
    records.learn_seconds("ltx", 10.0, Rates(1.0, 10.0))
    records.learn_seconds("ltx", 10.0, Rates(2.0, 20.0))
    records.learn_seconds("ltx", 10.0)  # nothing to learn from
    assert parse_rates(records.client.hget("polyreel:rates", "ltx")) == Rates(pytest.approx(1.3), pytest.approx(13.0))


@pytest.mark.parametrize("text", [None, "", "no JSON", "[1]", json.dumps({"another": "version"})])
def test_rates_that_cannot_be_read_are_none(text: str | None) -> None:
    assert parse_rates(text) is None


def test_somebody_elses_job_reads_like_none() -> None:
    stored = StoredJob(queued(), 1, 0, True)
    assert not hidden_from(stored, "alice")
    assert hidden_from(stored, "bob")
    assert hidden_from(None, "alice")
