"""Submitting: one step that admits, numbers and orders a job; twice is once; nothing is written for what is refused."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
import redis

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.errors import KeyReused, QueueUnavailable, TooManyJobs
from polyreel.job import JobStatus
from polyreel.queue import Queue
from polyreel.records import StoredJob
from polyreel.terms import Terms
from tests.core.jobs import (
    MODEL,
    REQUEST,
    LosesReplies,
    assert_all_adds_up,
    claim,
    losing_replies,
    open_queue,
    order,
    queued,
    read,
    redis_time,
    take,
)


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    queue.records.client.close()


def dump(client: redis.Redis) -> dict[str, bytes]:
    """Return all that Redis holds."""
    path = client.connection_pool.connection_kwargs["path"]
    with redis.Redis(unix_socket_path=path) as raw:  # in bytes
        return {key.decode(): raw.dump(key) for key in raw.scan_iter()}


def at_once(calls: int, do: Callable[[int], object]) -> list[object]:
    """Do something in many threads at the same moment; return what each gave or raised."""
    barrier = Barrier(calls)

    def one(number: int) -> object:
        barrier.wait()
        try:
            return do(number)
        except (TooManyJobs, KeyReused) as refusal:
            return refusal

    with ThreadPoolExecutor(calls) as threads:
        return list(threads.map(one, range(calls)))


def test_a_submitted_job_is_a_record_that_waits_in_its_models_order(queue: Queue) -> None:
    job = queued(vendor={"meta": {"prompt": "é"}})
    stored = queue.submit(job)
    assert read(queue, job.id) == stored
    assert (stored.claimable, stored.fence, stored.job.status) == (True, 0, JobStatus.QUEUED)
    assert stored.job == replace(job, created_at=stored.job.created_at, batch_key=stored.job.batch_key)
    assert len(stored.job.batch_key) == 16
    assert order(queue.records.client) == [job.id]
    assert queue.records.open_ids() == [job.id]
    assert_all_adds_up(queue.records.client)


def test_an_exact_job_shares_with_nobody_and_a_bulk_job_says_so(queue: Queue) -> None:
    assert queue.submit(queued(), Terms(exact=True)).job.batch_key == ""
    assert queue.submit(queued(), Terms(lane="bulk")).job.lane == "bulk"


def test_a_job_was_created_at_the_time_of_redis(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    before = redis_time(queue.records.client)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    stored = queue.submit(queued())
    assert before <= stored.job.created_at <= redis_time(queue.records.client)
    assert read(queue, stored.job.id).job.created_at == stored.job.created_at


def test_submitting_a_job_twice_is_submitting_it_once(queue: Queue) -> None:
    job = queued()
    first = queue.submit(job)
    before = dump(queue.records.client)
    assert queue.submit(job) == first
    assert dump(queue.records.client) == before


def test_submitting_a_job_again_does_not_take_it_from_its_worker(queue: Queue) -> None:
    job = queued()
    number = queue.submit(job).number
    claim(queue)
    before = dump(queue.records.client)
    assert queue.submit(job).number == number
    assert dump(queue.records.client) == before


def test_a_submit_whose_reply_was_lost_takes_one_place_and_one_number(redis_url: str) -> None:
    with losing_replies(redis_url) as queue:
        LosesReplies.to_lose = 1
        stored = queue.submit(queued(), Terms(idempotency_key="k", digest="d"))
        assert LosesReplies.to_lose == 0
        assert read(queue, stored.job.id) == stored
        assert_all_adds_up(queue.records.client)
        assert len(queue.records.client.keys("polyreel:number:*")) == 1


def test_numbers_are_whole_rise_and_stay_exact_in_a_float(queue: Queue) -> None:
    before_ms = int(redis_time(queue.records.client) * 1000)
    numbers = [queue.submit(queued()).number for _ in range(20)]
    assert numbers == sorted(set(numbers))
    assert before_ms <= numbers[0] < 2**53


@pytest.mark.parametrize("rolled_back_to", [None, "5"])
def test_a_counter_that_a_crash_rolled_back_hands_no_number_out_twice(queue: Queue, rolled_back_to: str | None) -> None:
    """Within one millisecond too: the steps of a transaction are of one moment."""
    client = queue.records.client
    jobs = [queued() for _ in range(4)]
    submit, asked = queue.records._submit, []

    def note(args: list[object]) -> list[object]:
        asked.append(args)
        return ["taken", job.id, 1, 1.0]

    queue.records._submit = note
    for job in jobs:
        queue.submit(job)
    client.script_load(submit.script)
    with client.pipeline(transaction=True) as together:
        for args in asked:
            together.evalsha(submit.sha, 0, *args)
            if rolled_back_to:
                together.set("polyreel:number", rolled_back_to)
            else:
                together.delete("polyreel:number")
        numbers = [answer[2] for answer in together.execute() if isinstance(answer, list)]
    assert len(set(numbers)) == 4
    assert [client.get(f"polyreel:number:{number}") for number in numbers] == [job.id for job in jobs]


def test_numbers_rise_also_when_the_clock_was_set_back(queue: Queue) -> None:
    queue.records.client.set("polyreel:number", "9007199254740000")
    assert queue.submit(queued()).number == 9007199254740001


def test_a_full_queue_refuses_and_writes_nothing(queue: Queue) -> None:
    queue.max_open = 2
    queue.submit(queued())
    queue.submit(queued(owner="bob"))
    before = dump(queue.records.client)
    with pytest.raises(TooManyJobs) as refused:
        queue.submit(queued(), Terms(idempotency_key="k", digest="d"))
    assert str(refused.value) == "The queue is full (2 unfinished jobs). Try again later."
    assert refused.value.retry_after_s == 30
    assert dump(queue.records.client) == before


def test_an_owner_with_all_its_jobs_is_refused_and_others_are_not(queue: Queue) -> None:
    queue.max_open_of_owner = 2
    queue.submit(queued())
    queue.submit(queued())
    before = dump(queue.records.client)
    with pytest.raises(TooManyJobs, match=r"^You have 2 unfinished jobs, which is all that this server lets one key"):
        queue.submit(queued())
    assert dump(queue.records.client) == before
    queue.submit(queued(owner="bob"))


@pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
def test_a_job_that_ended_makes_room(queue: Queue, end: str) -> None:
    queue.max_open = queue.max_open_of_owner = 1
    taken = take(queue)
    with pytest.raises(TooManyJobs):
        queue.submit(queued())
    if end == "cancel":
        assert queue.cancel(taken.job_id) == "cancelled"
    else:
        status = JobStatus.SUCCEEDED if end == "finish" else JobStatus.FAILED
        assert queue.records.advance(taken.job_id, taken.fence, status)
    queue.submit(queued())


def test_a_claimed_job_counts_as_unfinished(queue: Queue) -> None:
    queue.max_open_of_owner = 1
    take(queue)
    with pytest.raises(TooManyJobs):
        queue.submit(queued())


@pytest.mark.parametrize(("max_open", "max_open_of_owner", "admitted"), [(40, None, 40), (1000, 15, 30), (20, 15, 20)])
def test_limits_are_exact_when_a_hundred_submit_at_once(
    redis_url: str, max_open: int, max_open_of_owner: int | None, admitted: int
) -> None:
    queue = open_queue(redis_url, max_open=max_open, max_open_of_owner=max_open_of_owner, patient=True)
    said = at_once(100, lambda number: queue.submit(queued(owner=("alice", "bob")[number % 2])))
    stored = [one for one in said if isinstance(one, StoredJob)]
    assert len(stored) == admitted
    assert sum(isinstance(one, TooManyJobs) for one in said) == 100 - admitted
    assert len({one.number for one in stored}) == admitted
    if max_open_of_owner:
        assert max(Counter(one.job.owner for one in stored).values()) <= max_open_of_owner
    assert_all_adds_up(queue.records.client)


def test_the_same_key_and_request_is_the_same_job(queue: Queue) -> None:
    terms = Terms(idempotency_key="order-7", digest="a")
    first = queue.submit(queued(), terms)
    before = dump(queue.records.client)
    assert queue.submit(queued(), terms) == first
    assert dump(queue.records.client) == before


def test_the_same_key_is_the_same_job_after_its_end_and_when_the_queue_is_full(queue: Queue) -> None:
    terms = Terms(idempotency_key="order-7", digest="a")
    first = queue.submit(queued(), terms)
    queue.cancel(first.job.id)
    assert queue.submit(queued(), terms).job.status is JobStatus.CANCELLED
    queue.max_open = 0
    assert queue.submit(queued(), terms).job.id == first.job.id


def test_the_same_key_with_another_request_is_refused_and_writes_nothing(queue: Queue) -> None:
    queue.submit(queued(), Terms(idempotency_key="order-7", digest="a"))
    before = dump(queue.records.client)
    with pytest.raises(KeyReused, match="was sent before with another request; use a new one"):
        queue.submit(queued(), Terms(idempotency_key="order-7", digest="b"))
    assert dump(queue.records.client) == before


def test_owners_may_use_the_same_key(queue: Queue) -> None:
    terms = Terms(idempotency_key="order-7", digest="a")
    assert queue.submit(queued(), terms).job.id != queue.submit(queued(owner="bob"), terms).job.id


def test_a_key_is_remembered_for_a_day_and_only_if_the_job_was_taken(queue: Queue) -> None:
    terms = Terms(idempotency_key="order-7", digest="a")
    queue.max_open = 0
    with pytest.raises(TooManyJobs):
        queue.submit(queued(), terms)
    queue.max_open = 1
    queue.submit(queued(), terms)
    [key] = queue.records.client.keys("polyreel:idempotency:*")
    assert 86390 < queue.records.client.ttl(key) <= 86400


def test_a_key_whose_jobs_record_has_expired_stands_for_a_new_job(queue: Queue) -> None:
    """Records may be kept for less than a day."""
    terms = Terms(idempotency_key="order-7", digest="a")
    first = queue.submit(queued(), terms)
    queue.cancel(first.job.id)
    queue.records.client.delete(f"polyreel:job:{first.job.id}")
    second = queue.submit(queued(), terms)
    assert second.job.id != first.job.id
    assert queue.submit(queued(), terms) == second


def test_a_record_that_expires_between_two_looks_is_made_anew(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = Terms(idempotency_key="order-7", digest="a")
    first = queue.submit(queued(), terms)
    queue.cancel(first.job.id)
    get = queue.records.get

    def too_late(job_id: str) -> StoredJob | None:
        queue.records.client.delete(f"polyreel:job:{first.job.id}")
        return get(job_id)

    monkeypatch.setattr(queue.records, "get", too_late)
    again = queue.submit(queued(), terms)
    assert read(queue, again.job.id) == again


def test_a_hundred_at_once_with_one_key_make_one_job(redis_url: str) -> None:
    queue = open_queue(redis_url, patient=True)
    terms = Terms(idempotency_key="order-7", digest="a")
    said = at_once(100, lambda number: queue.submit(queued(), terms))
    assert len({one.job.id for one in said}) == 1
    assert len(queue.records.open_ids()) == 1
    assert_all_adds_up(queue.records.client)
    queue.records.client.close()


def test_a_waiting_job_never_expires(queue: Queue) -> None:
    job = queue.submit(queued()).job
    client = queue.records.client
    assert {key: client.ttl(key) for key in client.scan_iter(f"*{job.id}*")} == {
        f"polyreel:job:{job.id}": -1,
        f"rq:job:{job.id}": -1,
    }


def test_a_typical_job_takes_less_than_eight_kilobytes_of_redis(queue: Queue) -> None:
    """With its share of all that is kept around it; for the hour in which RQ shows its result, twelve."""
    client, jobs = queue.records.client, 200
    prompt = replace(REQUEST.prompts[0], prompt="A lighthouse in a storm, waves, rain, cinematic light. " * 9)
    request = replace(REQUEST, prompts=(prompt,), negative_prompt="worst quality, blurry, jittery, distorted, " * 5)

    def used() -> float:
        return sum(client.memory_usage(key, samples=0) for key in client.scan_iter()) / jobs

    for number in range(jobs):
        queue.submit(queued(request), Terms(idempotency_key=str(number), digest="d" * 64))
    assert used() < 8192
    claims = [one for _ in range(jobs // 4) for one in claim(queue, batches={MODEL: [(10**9, 4)]})]
    assert len(claims) == jobs
    assert used() < 8192
    output = {"key": "out/" + "k" * 80, "format": "mp4", "media_type": "video/mp4", "bytes": 10**6, "height": 480}
    output |= {"width": 832, "num_frames": 81, "fps": 16.0, "sha256": "0" * 64}
    for one in claims:
        assert queue.records.advance(
            one.job_id,
            one.fence,
            JobStatus.SUCCEEDED,
            progress=100,
            outputs=[output],
            receipt={"checkpoint": "c" * 999},
        )
    assert used() < 12288  # a stream reserves 4 KB
    assert_all_adds_up(client)


def test_a_queue_that_is_not_there_is_said_to_be_unavailable_at_once(tmp_path: Path) -> None:
    queue = open_queue(f"unix://{tmp_path}/nobody.sock")
    began = time.monotonic()
    with pytest.raises(QueueUnavailable) as refused:
        queue.submit(queued())
    assert time.monotonic() - began < 3.0
    assert str(refused.value) == "The queue does not answer right now. Try again in a few seconds."
    with pytest.raises(QueueUnavailable):
        queue.cancel("7b1e0000-0000-4000-8000-000000000000")


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
    queue = open_queue(own_broker.url)
    if connected_before:
        queue.submit(queued())
    os.kill(own_broker.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(QueueUnavailable):
        queue.submit(queued())
    assert time.monotonic() - began < 3.1


def test_a_full_memory_refuses_submits_and_lets_what_is_there_be_done(own_broker: EmbeddedBroker) -> None:
    queue = open_queue(own_broker.url)
    jobs = [queue.submit(queued(), Terms(exact=True)).job for _ in range(4)]
    claims = {one.job_id: one.fence for _ in range(2) for one in claim(queue)}
    with redis.Redis.from_url(own_broker.url) as client:
        client.config_set("maxmemory", "1")
    for model in (MODEL, "another"):
        with pytest.raises(QueueUnavailable, match=r"^The queue's memory is full; nothing was accepted"):
            queue.submit(queued(replace(REQUEST, model=model)))
    first, second, third, fourth = (job.id for job in jobs)
    assert queue.leases.renew("one", []) == []
    assert queue.records.advance(first, claims[first], JobStatus.RUNNING, progress=50)
    assert queue.records.advance(first, claims[first], JobStatus.SUCCEEDED, progress=100, outputs=[])
    assert queue.records.release(second, claims[second], counted=True)
    assert [one.job_id for one in claim(queue)] == [second]
    assert list(queue.leases.expire_worker("one").items()) == [(second, "queued")]
    assert queue.cancel(third) == "cancelled"
    assert queue.leases.repair() == {}
    assert queue.leases.reap() == {}
    assert queue.records.open_ids() == [second, fourth]
    assert_all_adds_up(queue.records.client)
    with redis.Redis.from_url(own_broker.url) as client:
        client.config_set("maxmemory", "0")
    queue.submit(queued())
