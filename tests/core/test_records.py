"""Job records on a real Valkey: states only move forward, and only the worker that has a job may write it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis.connection import UnixDomainSocketConnection

from polyreel.admission import Rates
from polyreel.broker import EmbeddedBroker
from polyreel.errors import TooManyJobs
from polyreel.job import JobStatus, VideoJob
from polyreel.records import OPEN, Records, StoredJob, connect, estimate_s, hidden_from, parse_rates, patient_retry
from tests.core.jobs import queued

ENDS = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


def create(records: Records, **fields: object) -> VideoJob:
    return records.create(queued(**fields), max_open=1000).job


def read(records: Records, job: VideoJob) -> StoredJob:
    stored = records.get(job.id)
    assert stored is not None
    return stored


def ttl(records: Records, key: str) -> int:
    return int(records.client.ttl(key))


def test_a_new_record_reads_back_and_waits_for_a_worker(records: Records) -> None:
    job = queued(vendor={"meta": {"prompt": "é"}})
    created = records.create(job, max_open=1000)
    assert read(records, job) == created == StoredJob(job, created.number, 0, True)
    assert records.open_ids() == [job.id]


def test_there_is_no_record_of_an_unknown_id(records: Records) -> None:
    assert records.get("7b1e0000-0000-4000-8000-000000000000") is None


def test_creating_a_job_again_leaves_it_as_it_is(records: Records) -> None:
    """A retried write whose first reply was lost must neither reset the job nor count it twice."""
    job = queued()
    first = records.create(job, max_open=1)
    fence = records.claim(job.id, "one", 1.0)
    assert records.create(job, max_open=1).number == first.number
    assert read(records, job).fence == fence
    assert read(records, job).job.status is JobStatus.LOADING
    assert records.client.keys("polyreel:number:*") == [f"polyreel:number:{first.number}"]


def test_numbers_are_unique_and_increase(records: Records) -> None:
    before_ms = time.time() * 1000
    numbers = [records.create(queued(), max_open=1000).number for _ in range(20)]
    assert numbers == sorted(set(numbers))
    assert before_ms - 1000 < numbers[0] < 2**53


@pytest.mark.parametrize("rolled_back_to", [None, "5"])
def test_a_counter_that_a_crash_rolled_back_hands_no_number_out_twice(
    records: Records, rolled_back_to: str | None
) -> None:
    first = records.create(queued(), max_open=1000)
    time.sleep(0.005)
    if rolled_back_to is None:
        records.client.delete("polyreel:number")
    else:
        records.client.set("polyreel:number", rolled_back_to)
    second = records.create(queued(), max_open=1000)
    assert second.number > first.number
    assert records.client.get(f"polyreel:number:{first.number}") == first.job.id


def test_numbers_increase_also_when_the_clock_was_set_back(records: Records) -> None:
    records.client.set("polyreel:number", "9007199254740000")
    assert records.create(queued(), max_open=1000).number == 9007199254740001


def test_a_full_queue_refuses_and_writes_nothing(records: Records) -> None:
    create(records)
    create(records)
    before = sorted(records.client.keys())
    number = records.client.get("polyreel:number")
    with pytest.raises(TooManyJobs) as refused:
        records.create(queued(), max_open=2)
    assert str(refused.value) == "The queue is full (2 unfinished jobs). Try again later."
    assert refused.value.retry_after_s == 30
    assert sorted(records.client.keys()) == before
    assert records.client.get("polyreel:number") == number


def test_a_job_that_ended_makes_room(records: Records) -> None:
    job = records.create(queued(), max_open=1).job
    records.advance(job.id, None, JobStatus.CANCELLED)
    assert records.create(queued(), max_open=1).number > 0


def test_a_job_is_given_to_one_worker(records: Records) -> None:
    job = create(records)
    assert records.claim(job.id, "one", 1700000000.25) == 1
    assert records.claim(job.id, "two", 1700000001.0) == 0
    assert records.claim(job.id, "one", 1700000001.0) == 0
    stored = read(records, job)
    assert (stored.job.worker, stored.job.attempts, stored.job.started_at) == ("one", 1, 1700000000.25)
    assert (stored.job.status, stored.claimable, stored.fence) == (JobStatus.LOADING, False, 1)


class LosesReplies(UnixDomainSocketConnection):
    """A connection that breaks after Redis has done what it was asked, as often as `to_lose` says."""

    to_lose = 0

    def read_response(self, *args: object, **kwargs: object) -> object:
        reply = super().read_response(*args, **kwargs)
        if LosesReplies.to_lose:
            LosesReplies.to_lose -= 1
            self.disconnect()
            raise redis.ConnectionError("lost")
        return reply


@pytest.fixture
def lossy(broker: EmbeddedBroker, records: Records) -> Iterator[Records]:
    """Records whose client repeats a call, as a worker's does when Redis restarts; the scripts are loaded."""
    records.advance("no such job", 0, JobStatus.RUNNING)
    records.claim("no such job", "one", 1.0)
    pool = redis.ConnectionPool(
        connection_class=LosesReplies,
        path=broker.url.removeprefix("unix://"),
        decode_responses=True,
        retry=patient_retry(),
    )
    with redis.Redis.from_pool(pool) as client:
        client.ping()
        yield Records(client, 60)
    LosesReplies.to_lose = 0


def test_a_claim_whose_reply_was_lost_is_the_same_claim_when_it_is_repeated(lossy: Records) -> None:
    """Otherwise the worker would think that it has not got the job, and keep it from all others while it lives."""
    job = create(lossy)
    LosesReplies.to_lose = 1
    fence = lossy.claim(job.id, "one", 1.0)
    assert LosesReplies.to_lose == 0
    assert fence == 1
    assert read(lossy, job).job.attempts == 1
    assert lossy.advance(job.id, fence, JobStatus.RUNNING)


def test_a_creation_whose_reply_was_lost_takes_one_place_and_one_number(lossy: Records) -> None:
    create(lossy)  # loads the script
    job = queued()
    LosesReplies.to_lose = 1
    stored = lossy.create(job, max_open=2)
    assert LosesReplies.to_lose == 0
    assert read(lossy, job).number == stored.number
    assert len(lossy.client.keys("polyreel:number:*")) == 2


@pytest.mark.parametrize("end", ENDS)
def test_a_job_that_ended_is_not_given_out(records: Records, end: JobStatus) -> None:
    job = create(records)
    records.advance(job.id, None, end)
    assert records.claim(job.id, "one", 1.0) == 0
    assert records.claim("no such job", "one", 1.0) == 0


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("later", list(JobStatus))
def test_an_end_never_changes(records: Records, end: JobStatus, later: JobStatus) -> None:
    job = create(records)
    fence = records.claim(job.id, "one", 1.0)
    assert records.advance(job.id, fence, end, error_message="first")
    repeated = records.advance(job.id, fence, later, error_message="second")
    assert repeated is (later is end), "the same end by the same claim is a write whose reply was lost"
    assert not records.advance(job.id, None, later, error_message="third")
    assert not records.release(job.id, fence, counted=True)
    stored = read(records, job)
    assert (stored.job.status, stored.job.error_message, stored.claimable) == (end, "first", False)


@pytest.mark.parametrize("status", [s for s in JobStatus if not s.is_terminal])
@pytest.mark.parametrize("later", [s for s in JobStatus if not s.is_terminal])
def test_states_only_move_forward(records: Records, status: JobStatus, later: JobStatus) -> None:
    order = ["queued", "loading", "running", "encoding", "uploading"]
    job = create(records)
    fence = records.claim(job.id, "one", 1.0)
    records.advance(job.id, fence, status)
    assert records.advance(job.id, fence, later, step=3), "the fields are written even so"
    expected = order[max(order.index(status), order.index(later), 1)]  # a claim alone makes it "loading"
    assert (read(records, job).job.status.value, read(records, job).job.step) == (expected, 3)


def test_progress_never_decreases(records: Records) -> None:
    job = create(records)
    fence = records.claim(job.id, "one", 1.0)
    seen = []
    for progress in (5, 40, 20, 40, 39, 85, 0):
        assert records.advance(job.id, fence, JobStatus.RUNNING, progress=progress)
        seen.append(read(records, job).job.progress)
    assert seen == [5, 40, 40, 40, 40, 85, 85]


def test_a_worker_that_was_given_up_can_no_longer_write(records: Records) -> None:
    job = create(records)
    old = records.claim(job.id, "one", 1.0)
    assert records.release(job.id, old, counted=True)
    assert not records.advance(job.id, old, JobStatus.RUNNING, progress=50), "nobody has it now"
    new = records.claim(job.id, "two", 2.0)
    assert new == 2
    assert not records.advance(job.id, old, JobStatus.SUCCEEDED, progress=100)
    assert not records.release(job.id, old, counted=False)
    assert records.advance(job.id, new, JobStatus.RUNNING, progress=10)
    assert (read(records, job).job.worker, read(records, job).job.progress) == ("two", 10)


@pytest.mark.parametrize(("counted", "attempts"), [(True, 1), (False, 0)])
def test_a_released_job_waits_again(records: Records, counted: bool, attempts: int) -> None:
    job = create(records)
    fence = records.claim(job.id, "one", 1.0)
    assert records.release(job.id, fence, counted=counted)
    assert not records.release(job.id, fence, counted=counted), "once"
    stored = read(records, job)
    assert (stored.claimable, stored.job.worker, stored.job.attempts) == (True, "", attempts)
    assert stored.job.status is JobStatus.LOADING, "states never move back"


def test_only_a_record_that_ended_expires(records: Records) -> None:
    job = create(records)
    number = f"polyreel:number:{read(records, job).number}"
    fence = records.claim(job.id, "one", 1.0)
    records.advance(job.id, fence, JobStatus.UPLOADING, progress=95)
    assert (ttl(records, f"polyreel:job:{job.id}"), ttl(records, number)) == (-1, -1)
    records.advance(job.id, fence, JobStatus.SUCCEEDED, progress=100)
    assert 604795 <= ttl(records, f"polyreel:job:{job.id}") <= 604800
    assert 604795 <= ttl(records, number) <= 604800


@pytest.mark.parametrize("end", ENDS)
def test_open_jobs_are_those_that_have_not_ended(records: Records, end: JobStatus) -> None:
    newer, older = create(records, created_at=20.0), create(records, created_at=10.0)
    assert records.open_ids() == [older.id, newer.id]
    records.advance(older.id, records.claim(older.id, "one", 1.0), JobStatus.RUNNING)
    assert records.open_ids() == [older.id, newer.id]
    records.advance(older.id, None, end)
    assert records.open_ids() == [newer.id]


def test_a_job_that_is_given_up_fails_with_its_end_noted(records: Records) -> None:
    job = create(records)
    records.claim(job.id, "one", time.time() - 5)
    records.give_up(read(records, job))
    failed = read(records, job).job
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "worker_died")
    assert failed.error_message == "The worker died 3 times while it ran this job; it is not tried again."
    assert 5 <= failed.seconds_taken < 10


def test_giving_up_a_job_that_moved_on_does_nothing(records: Records) -> None:
    job = create(records)
    fence = records.claim(job.id, "one", 1.0)
    stale = read(records, job)
    records.release(job.id, fence, counted=False)
    records.give_up(stale)
    assert read(records, job).job.status is JobStatus.LOADING
    records.claim(job.id, "two", 2.0)
    records.give_up(stale)
    assert read(records, job).job.status is JobStatus.LOADING


def test_a_worker_is_alive_while_it_beats(records: Records) -> None:
    assert not records.is_alive("one")
    records.beat("one", {"models": ["ltx"]})
    assert records.is_alive("one")
    assert 13 <= ttl(records, "polyreel:worker:one") <= 15
    assert json.loads(records.client.get("polyreel:worker:one")) == {"models": ["ltx"]}
    records.leave("one")
    assert not records.is_alive("one")


def test_the_mean_of_a_models_seconds_moves_towards_the_newest(records: Records) -> None:
    records.learn_seconds("ltx", 10.0)
    records.learn_seconds("ltx", 20.0)
    assert records.client.hgetall("polyreel:seconds") == {"ltx": "13.000"}


@pytest.mark.parametrize(
    ("status", "progress", "mean_s", "ahead", "seconds"),
    [
        (JobStatus.QUEUED, 0, None, 0, 10),
        (JobStatus.QUEUED, 0, 30.0, 2, 90),
        (JobStatus.RUNNING, 50, 30.0, 0, 15),
        (JobStatus.UPLOADING, 99, 1.0, 0, 1),
        (JobStatus.SUCCEEDED, 100, 30.0, 5, 0),
        (JobStatus.FAILED, 5, None, 0, 0),
    ],
)
def test_the_estimate_counts_what_is_left_and_what_is_ahead(
    status: JobStatus, progress: int, mean_s: float | None, ahead: int, seconds: int
) -> None:
    assert estimate_s(queued(status=status, progress=progress), mean_s, ahead) == seconds


def test_a_jobs_own_seconds_replace_the_mean_for_itself_alone() -> None:
    assert estimate_s(queued(progress=50), 30.0, 2, own_s=8.0) == 64
    assert estimate_s(queued(), None, 0, own_s=8.0) == 8


def test_a_models_rates_move_towards_the_newest(records: Records) -> None:
    records.learn_seconds("ltx", 10.0, Rates(1.0, 10.0))
    records.learn_seconds("ltx", 10.0, Rates(2.0, 20.0))
    records.learn_seconds("ltx", 10.0)  # nothing to learn from
    assert parse_rates(records.client.hget("polyreel:rates", "ltx")) == Rates(pytest.approx(1.3), pytest.approx(13.0))


def test_somebody_elses_job_reads_like_none() -> None:
    stored = StoredJob(queued(), 1, 0, True)
    assert not hidden_from(stored, "alice")
    assert hidden_from(stored, "bob")
    assert hidden_from(None, "alice")


@dataclass
class Model:
    """What the record of one job must say."""

    status: JobStatus = JobStatus.QUEUED
    progress: int = 0
    attempts: int = 0
    holder: str = ""
    fence: int = 0


def life_of_a_job(records: Records) -> type[RuleBasedStateMachine]:
    class LifeOfAJob(RuleBasedStateMachine):
        """Whatever two workers and a client do, in whatever order: a call either does what it says or returns
        False and changes nothing; the status never moves back; progress never falls; one worker at most has the job,
        and no other's write is taken; what has ended stays as it ended, and is in the open set no longer; telling the
        same end again (a lost reply) is no error.
        """

        def __init__(self) -> None:
            super().__init__()
            self.job = create(records)
            self.model = Model()
            self.fences = {"one": 0, "two": 0}
            self.ended_by = ""

        @property
        def ended(self) -> bool:
            return self.model.status.is_terminal

        def move(self, status: JobStatus) -> None:
            if status.rank > self.model.status.rank:
                self.model.status = status

        @rule(worker=st.sampled_from(["one", "two"]))
        def claim(self, worker: str) -> None:
            fence = records.claim(self.job.id, worker, 1.0)
            assert bool(fence) is (not self.ended and not self.model.holder)
            if fence:
                assert fence == self.model.fence + 1
                self.fences[worker] = self.model.fence = fence
                self.model.holder = worker
                self.model.attempts += 1
                self.move(JobStatus.LOADING)

        @precondition(lambda self: any(self.fences.values()))
        @rule(worker=st.sampled_from(["one", "two"]), status=st.sampled_from(JobStatus), progress=st.integers(0, 100))
        def advance(self, worker: str, status: JobStatus, progress: int) -> None:
            accepted = records.advance(self.job.id, self.fences[worker], status, progress=progress)
            is_repeated = self.ended and self.ended_by == worker and status is self.model.status
            assert accepted is (is_repeated or (not self.ended and self.model.holder == worker))
            if accepted and not self.ended:
                self.ended_by = worker if status.is_terminal else ""
                self.move(status)
                self.model.progress = max(self.model.progress, progress)

        @rule(worker=st.sampled_from(["one", "two"]), counted=st.booleans())
        def release(self, worker: str, counted: bool) -> None:
            accepted = records.release(self.job.id, self.fences[worker], counted=counted)
            assert accepted is (not self.ended and self.model.holder == worker)
            if accepted:
                self.model.holder = ""
                self.model.attempts -= 0 if counted else 1

        @rule()
        def give_up(self) -> None:
            records.give_up(read(records, self.job))
            if self.model.holder:
                if not self.ended:
                    self.ended_by = self.model.holder  # in the name of its claim
                self.move(JobStatus.FAILED)

        @rule()
        def cancel(self) -> None:
            assert records.advance(self.job.id, None, JobStatus.CANCELLED) is not self.ended
            self.move(JobStatus.CANCELLED)

        @invariant()
        def the_record_says_what_the_model_says(self) -> None:
            stored = read(records, self.job)
            assert stored.job.status is self.model.status
            assert stored.job.progress == self.model.progress
            assert stored.job.attempts == self.model.attempts
            assert stored.fence == self.model.fence
            assert (self.job.id in records.open_ids()) is not self.ended
            assert (ttl(records, f"polyreel:job:{self.job.id}") > 0) is self.ended
            if not self.ended:
                assert stored.job.worker == self.model.holder
                assert stored.claimable is not bool(self.model.holder)

        def teardown(self) -> None:
            records.client.zrem(OPEN, self.job.id)

    return LifeOfAJob


def test_the_life_of_a_job(broker: EmbeddedBroker) -> None:
    with connect(broker.url, patient=False) as client:
        client.flushall()
        run_state_machine_as_test(
            life_of_a_job(Records(client, retention_s=60)),
            settings=settings(
                max_examples=80, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
