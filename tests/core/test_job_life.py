"""A job from submit to its one end: cancelling at every point, and one state machine over all that can happen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from polyreel.broker import EmbeddedBroker
from polyreel.job import JobStatus
from polyreel.leases import Claim
from polyreel.queue import Queue
from polyreel.records import StoredJob
from polyreel.terms import LANES, Lane, Terms
from tests.core.jobs import (
    BATCHES,
    LosesReplies,
    assert_all_adds_up,
    claim,
    losing_replies,
    open_queue,
    order,
    queued,
    read,
    reap,
    run_out,
    take,
)

UNFINISHED = [status for status in JobStatus if not status.is_terminal]
ENDS = [status for status in JobStatus if status.is_terminal]


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    assert_all_adds_up(queue.records.client)
    queue.records.client.close()


def test_a_waiting_job_is_cancelled_at_once(queue: Queue) -> None:
    queue.max_open = queue.max_open_of_owner = 2
    first, second = (queue.submit(queued()).job.id for _ in range(2))
    assert queue.cancel(first) == "cancelled"
    cancelled = read(queue, first).job
    assert (cancelled.status, cancelled.attempts, cancelled.error_code) == (JobStatus.CANCELLED, 0, "")
    assert cancelled.ended_at >= cancelled.created_at > 0
    assert order(queue.records.client) == [second]
    assert queue.submit(queued()).claimable, "there is room again, for all and for its owner"


@pytest.mark.parametrize("status", ["loading", "running"])
def test_a_running_job_is_cancelled_and_its_worker_told(queue: Queue, status: str) -> None:
    taken = take(queue)
    assert queue.records.advance(taken.job_id, taken.fence, JobStatus(status), "one", stage="denoising")
    assert queue.cancel(taken.job_id) == "cancelled"
    assert queue.leases.renew("one", [taken]) == ["cancelled"]
    assert not queue.records.advance(taken.job_id, taken.fence, JobStatus.SUCCEEDED, "one", outputs=["late"])
    assert not queue.records.release(taken.job_id, taken.fence, counted=False)
    cancelled = read(queue, taken.job_id).job
    assert (cancelled.status, cancelled.outputs, cancelled.stage) == (JobStatus.CANCELLED, (), "")
    assert queue.records.client.zcard("polyreel:leases") == 0


@pytest.mark.parametrize("status", ["encoding", "uploading"])
def test_a_job_whose_file_is_in_the_making_is_not_cancelled(queue: Queue, status: str) -> None:
    taken = take(queue)
    assert queue.records.advance(taken.job_id, taken.fence, JobStatus(status), "one")
    assert queue.cancel(taken.job_id) == "finishing"
    assert queue.records.advance(taken.job_id, taken.fence, JobStatus.SUCCEEDED, "one")


def test_a_job_that_waits_again_is_cancelled_however_far_it_had_come(queue: Queue) -> None:
    taken = take(queue)
    queue.records.advance(taken.job_id, taken.fence, JobStatus.ENCODING, "one")
    run_out(queue.records.client, taken.job_id)
    reap(queue.leases)
    assert queue.cancel(taken.job_id) == "cancelled"
    assert queue.leases.renew("one", [taken]) == ["cancelled"]


@pytest.mark.parametrize(
    ("end", "word"),
    [
        (JobStatus.SUCCEEDED, "succeeded"),
        (JobStatus.FAILED, "failed"),
        (JobStatus.CANCELLED, "was cancelled"),
    ],
)
def test_what_has_ended_is_not_cancelled(queue: Queue, end: JobStatus, word: str) -> None:
    taken = take(queue)
    assert queue.records.advance(taken.job_id, taken.fence, end, "one")
    before = queue.records.client.hgetall(f"polyreel:job:{taken.job_id}")
    assert queue.cancel(taken.job_id) == word
    assert queue.records.client.hgetall(f"polyreel:job:{taken.job_id}") == before


def test_cancelling_twice_counts_once_and_nobody_can_cancel_what_is_not_there(queue: Queue) -> None:
    job = queue.submit(queued()).job.id
    assert [queue.cancel(job), queue.cancel(job), queue.cancel("no such job")] == ["cancelled", "was cancelled", ""]
    assert queue.records.client.hget("polyreel:counts", "cancelled") == "1"


def test_cancelling_one_of_a_batch_leaves_the_others(queue: Queue) -> None:
    jobs = [queue.submit(queued()).job.id for _ in range(3)]
    claims = claim(queue, batches=BATCHES)
    assert queue.cancel(jobs[1]) == "cancelled"
    assert queue.leases.renew("one", claims) == ["ok", "cancelled", "ok"]
    said = queue.records.advance_all([(one.job_id, one.fence) for one in claims], JobStatus.RUNNING, "one", step=1)
    assert said == [True, False, True]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("later", list(JobStatus))
def test_an_end_never_changes(queue: Queue, end: JobStatus, later: JobStatus) -> None:
    taken = take(queue)
    assert queue.records.advance(taken.job_id, taken.fence, end, "one", error_message="first")
    repeated = queue.records.advance(taken.job_id, taken.fence, later, "one", error_message="second")
    assert repeated is (later is end), "the same end by the same claim is a write whose reply was lost"
    assert not queue.records.advance(taken.job_id, None, later, error_message="third")
    assert not queue.records.release(taken.job_id, taken.fence, counted=True)
    stored = read(queue, taken.job_id)
    assert (stored.job.status, stored.job.error_message, stored.claimable) == (end, "first", False)


@pytest.mark.parametrize("status", UNFINISHED)
@pytest.mark.parametrize("later", UNFINISHED)
def test_states_only_move_forward(queue: Queue, status: JobStatus, later: JobStatus) -> None:
    names = ["queued", "loading", "running", "encoding", "uploading"]
    taken = take(queue)
    queue.records.advance(taken.job_id, taken.fence, status, "one")
    assert queue.records.advance(taken.job_id, taken.fence, later, "one", step=3), "the fields are written even so"
    expected = names[max(names.index(status), names.index(later), 1)]  # a claim alone makes it "loading"
    job = read(queue, taken.job_id).job
    assert (job.status.value, job.step) == (expected, 3)


@pytest.mark.parametrize("call", ["finish", "cancel", "release", "renew"])
def test_a_call_whose_reply_was_lost_has_done_it_once(redis_url: str, call: str) -> None:
    with losing_replies(redis_url) as queue:
        taken = take(queue)
        LosesReplies.to_lose = 1
        if call == "finish":
            assert queue.records.advance(taken.job_id, taken.fence, JobStatus.SUCCEEDED, "one", progress=100)
        elif call == "cancel":
            assert queue.cancel(taken.job_id) == "was cancelled"
        elif call == "release":
            assert not queue.records.release(taken.job_id, taken.fence, counted=False), "it waits already"
            assert read(queue, taken.job_id).job.attempts == 0
        else:
            assert queue.leases.renew("one", [taken]) == ["ok"]
        assert LosesReplies.to_lose == 0
        assert_all_adds_up(queue.records.client)


WORKERS = ("one", "two", "three")


def life_of_jobs(queue: Queue) -> type[RuleBasedStateMachine]:
    client, records, leases = queue.records.client, queue.records, queue.leases

    class LifeOfJobs(RuleBasedStateMachine):
        """Whatever clients, workers, reapers and repairs do, in whatever order and however often a reply is lost:

        a job's state only moves forward, its end never changes, and its progress never falls; who has it may write it,
        which is the worker of its last claim until somebody else claims it or it gave the job back, and nobody else; so
        exactly one claim publishes; it has three attempts at most; and at each moment everything that is kept about it
        agrees (`assert_all_adds_up`): it is in exactly one of its order, the leases and the ended.
        """

        def __init__(self) -> None:
            super().__init__()
            client.flushall()
            self.seen: dict[str, StoredJob] = {}
            #: Every claim ever made, with its worker; and those that gave the job back themselves.
            self.claims: list[tuple[str, Claim]] = []
            self.given_back: set[Claim] = set()
            #: Which claim ended a job, by its own word or by its worker's death; and which ones by their own word.
            self.ended_by: dict[str, int] = {}
            self.published: dict[str, int] = {}
            self.keys = itertools.count()

        def pick(self, number: int) -> str:
            return list(self.seen)[number % len(self.seen)]

        def may_write(self, claimed: Claim) -> bool:
            stored = self.seen[claimed.job_id]
            return (
                stored.fence == claimed.fence and not stored.job.status.is_terminal and claimed not in self.given_back
            )

        @rule(owner=st.sampled_from(["alice", "bob"]), lane=st.sampled_from(LANES), key=st.sampled_from(["", "k"]))
        def submit(self, owner: str, lane: Lane, key: str) -> None:
            job = queued(owner=owner, lane=lane, batch_key=key)
            terms = Terms(lane=lane, idempotency_key=str(next(self.keys)), digest="d")
            stored = records.create(job, 1000, terms=terms)
            assert records.create(job, 1000, terms=terms) == stored, "a lost reply"
            assert records.create(queued(owner=owner), 1000, terms=terms) == stored, "a client that asks again"

        @rule(worker=st.sampled_from(WORKERS), limit=st.integers(1, 3))
        def claim(self, worker: str, limit: int) -> None:
            waiting = order(client)
            claims = claim(queue, worker, batches={"ltx-tiny": [(10**9, limit)]})
            assert bool(claims) is bool(waiting)
            assert [one.job_id for one in claims][:1] == waiting[:1]
            for one in claims:
                assert one.fence == self.seen[one.job_id].fence + 1
                self.claims.append((worker, one))

        @precondition(lambda self: self.claims)
        @rule(number=st.integers(0, 99), again=st.booleans())
        def renew(self, number: int, again: bool) -> None:
            worker, one = self.claims[-1 - number % len(self.claims)]
            stored = self.seen[one.job_id]
            expected = "ok" if self.may_write(one) else "lost"
            if stored.fence == one.fence and stored.job.status.is_terminal:
                expected = stored.job.status.value
            for _ in range(1 + again):
                assert leases.renew(worker, [one]) == [expected]

        @precondition(lambda self: self.claims)
        @rule(
            number=st.integers(0, 99),
            status=st.sampled_from([*UNFINISHED, *ENDS[:2]]),
            progress=st.integers(0, 100),
            again=st.booleans(),
        )
        def advance(self, number: int, status: JobStatus, progress: int, again: bool) -> None:
            worker, one = self.claims[-1 - number % len(self.claims)]
            is_repeated = self.ended_by.get(one.job_id) == one.fence and self.seen[one.job_id].job.status is status
            expected = self.may_write(one) or is_repeated
            for _ in range(1 + again):
                said = records.advance(one.job_id, one.fence, status, worker, progress=progress, step=one.fence)
                assert said is expected
            if expected and status.is_terminal and not is_repeated:
                assert one.job_id not in self.ended_by
                self.ended_by[one.job_id] = self.published[one.job_id] = one.fence

        @precondition(lambda self: self.claims)
        @rule(number=st.integers(0, 99), counted=st.booleans(), again=st.booleans())
        def release(self, number: int, counted: bool, again: bool) -> None:
            _, one = self.claims[-1 - number % len(self.claims)]
            expected = self.may_write(one) and not self.seen[one.job_id].claimable
            assert records.release(one.job_id, one.fence, counted=counted) is expected
            if again:
                assert not records.release(one.job_id, one.fence, counted=counted)
            if expected:
                self.given_back.add(one)
                if counted and self.seen[one.job_id].job.attempts == 3:
                    self.ended_by[one.job_id] = one.fence

        @precondition(lambda self: self.seen)
        @rule(number=st.integers(0, 99))
        def cancel(self, number: int) -> None:
            job_id = self.pick(number)
            stored = self.seen[job_id]
            expected = "cancelled"
            if stored.job.status.is_terminal:
                expected = "was cancelled" if stored.job.status is JobStatus.CANCELLED else stored.job.status.value
            elif stored.job.status.rank >= JobStatus.ENCODING.rank and not stored.claimable:
                expected = "finishing"
            assert queue.cancel(job_id) == expected

        @precondition(lambda self: self.seen)
        @rule(numbers=st.lists(st.integers(0, 99), max_size=4), again=st.booleans())
        def leases_run_out(self, numbers: list[int], again: bool) -> None:
            jobs = {self.pick(number) for number in numbers}
            leased = {job_id for job_id in jobs if client.zscore("polyreel:leases", job_id) is not None}
            if leased:
                run_out(client, *leased)
            self.died(leased, reap(leases))
            if again:
                assert reap(leases) == {}

        @rule(worker=st.sampled_from(WORKERS))
        def worker_dies(self, worker: str) -> None:
            had = {job_id for job_id, stored in self.seen.items() if stored.job.worker == worker}
            had = {job_id for job_id in had if client.zscore("polyreel:leases", job_id) is not None}
            self.died(had, leases.expire_worker(worker))

        def died(self, job_ids: set[str], said: dict[str, str]) -> None:
            spent = {job_id for job_id in job_ids if self.seen[job_id].job.attempts == 3}
            assert said == {job_id: "failed" if job_id in spent else "queued" for job_id in job_ids}
            self.ended_by |= {job_id: self.seen[job_id].fence for job_id in spent}

        @rule()
        def repair(self) -> None:
            assert leases.repair() == {}, "there was nothing to repair"

        @invariant()
        def everything_agrees(self) -> None:
            assert_all_adds_up(client)
            for key in client.scan_iter("polyreel:job:*"):
                now = read(queue, key.removeprefix("polyreel:job:"))
                before = self.seen.get(now.job.id, now)
                assert now.job.status.rank >= before.job.status.rank
                assert now.job.progress >= before.job.progress
                assert now.fence >= before.fence
                assert now.number == before.number
                if before.job.status.is_terminal:
                    assert now == before
                self.seen[now.job.id] = now
            for job_id, fence in self.published.items():
                assert self.seen[job_id].job.status.is_terminal
                assert client.hget(f"polyreel:job:{job_id}", "ended_by") == str(fence)
                assert self.seen[job_id].job.step == fence, "no other claim's fields"

    return LifeOfJobs


def test_the_life_of_jobs(broker: EmbeddedBroker) -> None:
    queue = open_queue(broker.url)
    run_state_machine_as_test(
        life_of_jobs(queue),
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    queue.records.client.close()
