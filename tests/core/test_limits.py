"""What a key may ask for: counted in the step that takes a job in, exact however many try at once, and only once.

The clock is Redis' own, so tests put what it is compared with into the past.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from polyreel.errors import LimitReached, TooManyJobs
from polyreel.job import JobStatus
from polyreel.leases import Claim
from polyreel.limits import KeyLimits, Usage
from polyreel.queue import Queue
from polyreel.terms import Terms
from tests.core.jobs import MODEL, assert_all_adds_up, claim, open_queue, queued, reap, redis_time, run_out


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url, patient=True)
    yield queue
    queue.records.client.close()


def submit(
    queue: Queue, account: str = "", expected_s: float = 0.0, idempotency_key: str = "", **limits: object
) -> str:
    """Submit a job of alice's whose key has these limits; return its id."""
    terms = Terms(limits=KeyLimits(**limits), expected_s=expected_s, idempotency_key=idempotency_key, digest="same")
    return queue.submit(queued(account=account), terms).job.id


def refused(queue: Queue, account: str = "", expected_s: float = 0.0, **limits: object) -> LimitReached:
    """Submit a job that a limit refuses; return the error."""
    with pytest.raises(LimitReached) as caught:
        submit(queue, account, expected_s, **limits)
    return caught.value


def ran_for(queue: Queue, job_id: str, seconds: float) -> None:
    """Let a claim be so old."""
    client = queue.records.client
    client.hset(f"polyreel:job:{job_id}", "charged_to", redis_time(client) - seconds)


def until_midnight(queue: Queue) -> float:
    return 86400 - redis_time(queue.records.client) % 86400


def test_whether_a_job_would_be_refused_can_be_asked_and_uses_nothing(queue: Queue) -> None:
    terms = Terms(limits=KeyLimits(requests_per_minute=1, max_queued=1, gpu_seconds_per_day=10), expected_s=5)
    client = queue.records.client
    for _ in range(3):
        queue.check(queued(), terms)
    assert list(client.scan_iter("*")) == []
    queue.submit(queued(), terms)
    before = sorted(client.scan_iter("*"))
    with pytest.raises(LimitReached, match="You have 1 unfinished jobs"):
        queue.check(queued(), terms)
    assert sorted(client.scan_iter("*")) == before


def test_so_many_submits_are_taken_in_a_minute_and_then_one_each_interval(queue: Queue) -> None:
    client = queue.records.client
    for _ in range(6):
        submit(queue, requests_per_minute=6)
    error = refused(queue, requests_per_minute=6)
    assert error.retry_after_s in (9, 10)  # some milliseconds have passed
    assert str(error) == f"This API key may submit 6 jobs a minute. Try again in {error.retry_after_s} s."
    client.decrby("polyreel:rate:alice", 7_000_000)
    assert refused(queue, requests_per_minute=6).retry_after_s in (2, 3)
    client.decrby("polyreel:rate:alice", 3_000_000)
    submit(queue, requests_per_minute=6)
    assert refused(queue, requests_per_minute=6).retry_after_s in (9, 10)
    assert 50 <= client.ttl("polyreel:rate:alice") <= 70


@pytest.mark.parametrize("limit", [1, 2, 7, 11])
def test_a_minutes_worth_is_exact_where_the_interval_is_no_whole_number(queue: Queue, limit: int) -> None:
    for _ in range(limit):
        submit(queue, requests_per_minute=limit)
    refused(queue, requests_per_minute=limit)


def test_a_clock_that_was_put_back_locks_nobody_out(queue: Queue) -> None:
    """Seen from before, what was taken lies an hour ahead; and a claim began in the future."""
    client = queue.records.client
    submit(queue, requests_per_minute=6)
    client.incrby("polyreel:rate:alice", 3600 * 1_000_000)
    assert refused(queue, requests_per_minute=6).retry_after_s == 10
    [taken] = claim(queue)
    ran_for(queue, taken.job_id, -3600)
    assert queue.records.advance(taken.job_id, taken.fence, JobStatus.SUCCEEDED)
    assert used_s(queue) == 0


def test_unfinished_jobs_of_an_account_are_counted_and_not_its_owners(queue: Queue) -> None:
    first = submit(queue, "key:one", max_queued=2)
    submit(queue, "key:one", max_queued=2)
    error = refused(queue, "key:one", max_queued=2)
    assert error.retry_after_s == 30
    assert str(error) == (
        "You have 2 unfinished jobs, which is all that this server lets one key have. "
        "Wait for one to end, or cancel one."
    )
    submit(queue, "key:two", max_queued=2)
    assert queue.cancel(first) == "cancelled"
    submit(queue, "key:one", max_queued=2)


def test_a_keys_own_number_comes_before_the_settings(queue: Queue) -> None:
    queue.max_open_of_owner = 1
    submit(queue, max_queued=2)
    submit(queue, max_queued=2)
    refused(queue, max_queued=2)
    submit(queue, "another")
    refused(queue, "another")


def test_what_unfinished_jobs_are_expected_to_take_counts_against_the_day(queue: Queue) -> None:
    submit(queue, expected_s=40, gpu_seconds_per_day=100)
    kept = submit(queue, expected_s=60, gpu_seconds_per_day=100)
    left_s = until_midnight(queue)
    error = refused(queue, expected_s=1, gpu_seconds_per_day=100)
    assert abs(error.retry_after_s - left_s) <= 2
    assert str(error) == (
        "This API key may use 100 seconds of a GPU a day (UTC), and this job with those that are not finished would "
        f"take more. The day ends in {error.retry_after_s} s."
    )
    submit(queue, expected_s=0, gpu_seconds_per_day=100)  # of which nothing is known
    queue.cancel(kept)
    submit(queue, expected_s=60, gpu_seconds_per_day=100)


def test_of_jobs_whose_length_nobody_knows_one_at_a_time_is_taken(queue: Queue) -> None:
    first = submit(queue, gpu_seconds_per_day=100)
    error = refused(queue, gpu_seconds_per_day=100)
    assert (error.retry_after_s, str(error)) == (
        30,
        "Nobody knows yet how long this job takes, nor one of yours that is not finished, and this API key may use "
        "100 seconds of a GPU a day. Wait for that one to end.",
    )
    submit(queue, expected_s=50, gpu_seconds_per_day=100)
    submit(queue)  # of a key without this limit
    queue.submit(queued(), Terms(limits=KeyLimits(gpu_seconds_per_day=100), ends="failed"))  # a rehearsal takes nothing
    assert queue.leases.repair() == {}
    refused(queue, gpu_seconds_per_day=100)
    submit(queue, "another", gpu_seconds_per_day=100)
    for job in (first, queue.records.open_ids()[-2]):
        queue.cancel(job)
    submit(queue, gpu_seconds_per_day=100)


def test_a_job_that_alone_would_take_more_than_a_day_is_told_so(queue: Queue) -> None:
    assert str(refused(queue, expected_s=120, gpu_seconds_per_day=100)) == (
        "This job is expected to take 120 seconds of a GPU, and this API key may use 100 a day. "
        "Ask for fewer frames, steps or pixels."
    )


def test_what_was_used_counts_until_midnight(queue: Queue) -> None:
    client = queue.records.client
    job = submit(queue, gpu_seconds_per_day=50)
    [taken] = claim(queue)
    ran_for(queue, job, 45)
    queue.records.advance(job, taken.fence, JobStatus.SUCCEEDED)
    refused(queue, expected_s=6, gpu_seconds_per_day=50)
    submit(queue, expected_s=4, gpu_seconds_per_day=50)
    today = int(redis_time(client) // 86400)
    assert 86400 < client.ttl(f"polyreel:used:{today}:alice") <= 2 * 86400
    client.rename(f"polyreel:used:{today}:alice", f"polyreel:used:{today - 1}:alice")
    submit(queue, expected_s=46, gpu_seconds_per_day=50)


def test_a_repetition_is_not_counted(queue: Queue) -> None:
    limits = {"requests_per_minute": 1, "max_queued": 1, "gpu_seconds_per_day": 10}
    job = submit(queue, expected_s=10, idempotency_key="k", **limits)
    for _ in range(3):
        assert submit(queue, expected_s=10, idempotency_key="k", **limits) == job
    assert queue.records.usage("alice").submits == 1


def test_a_refused_submit_consumes_nothing(queue: Queue) -> None:
    """Whichever limit refuses it, the others are as they were."""
    client = queue.records.client
    full = submit(queue, max_queued=1, requests_per_minute=2)
    before = {key: client.dump(key) for key in client.scan_iter("polyreel:*")}
    for _ in range(5):
        refused(queue, max_queued=1, requests_per_minute=2)
        refused(queue, expected_s=9, gpu_seconds_per_day=8, requests_per_minute=2)
    queue.max_open = 1
    with pytest.raises(TooManyJobs):
        submit(queue, requests_per_minute=2)
    assert {key: client.dump(key) for key in client.scan_iter("polyreel:*")} == before
    queue.max_open = 1000
    queue.cancel(full)
    submit(queue, max_queued=1, requests_per_minute=2)
    refused(queue, requests_per_minute=2)


@pytest.mark.parametrize(
    ("limits", "expected_s", "admitted"),
    [
        ({"requests_per_minute": 4}, 0.0, 4),
        ({"max_queued": 23}, 0.0, 23),
        ({"gpu_seconds_per_day": 100.0}, 7.0, 14),
        ({"requests_per_minute": 30, "max_queued": 20, "gpu_seconds_per_day": 100.0}, 5.0, 20),
    ],
    ids=["requests", "queued", "seconds", "all"],
)
def test_of_a_hundred_at_once_exactly_as_many_are_taken_as_may(
    queue: Queue, limits: dict[str, object], expected_s: float, admitted: int
) -> None:
    def attempt(_: int) -> str:
        try:
            return "taken" if submit(queue, "key:one", expected_s, **limits) else ""
        except LimitReached:
            return "refused"

    with ThreadPoolExecutor(20) as pool:
        assert Counter(pool.map(attempt, range(100))) == {"taken": admitted, "refused": 100 - admitted}
    usage = queue.records.usage("key:one")
    assert (usage.submits, usage.queued, usage.reserved_seconds) == (admitted, admitted, admitted * expected_s)
    assert_all_adds_up(queue.records.client)


def used_s(queue: Queue, account: str = "alice") -> int:
    return round(queue.records.usage(account).gpu_seconds)


@pytest.mark.parametrize("end", [JobStatus.SUCCEEDED, JobStatus.FAILED])
def test_an_attempt_is_charged_when_it_ends_and_the_same_end_again_is_not(queue: Queue, end: JobStatus) -> None:
    job = submit(queue)
    [taken] = claim(queue)
    ran_for(queue, job, 40)
    assert queue.records.advance(job, taken.fence, JobStatus.RUNNING)
    assert used_s(queue) == 0
    assert queue.records.advance(job, taken.fence, end)
    assert queue.records.advance(job, taken.fence, end), "its reply was lost"
    assert used_s(queue) == 40


def test_a_job_that_no_worker_had_is_not_charged(queue: Queue) -> None:
    queue.cancel(submit(queue))
    assert used_s(queue) == 0


def test_one_that_is_cancelled_while_it_waits_again_is_charged_for_its_attempt_only(queue: Queue) -> None:
    job = submit(queue)
    [taken] = claim(queue)
    ran_for(queue, job, 40)
    queue.records.release(job, taken.fence, counted=True)
    ran_for(queue, job, 500)
    assert queue.cancel(job) == "cancelled"
    assert used_s(queue) == 40


def test_a_running_job_is_charged_when_it_is_cancelled(queue: Queue) -> None:
    job = submit(queue)
    claim(queue)
    ran_for(queue, job, 40)
    assert queue.cancel(job) == "cancelled"
    assert used_s(queue) == 40


def test_each_attempt_is_charged_also_the_last_one_that_fails_the_job(queue: Queue) -> None:
    job = submit(queue)
    for _ in range(3):
        claim(queue)
        ran_for(queue, job, 40)
        run_out(queue.records.client, job)
        reap(queue.leases)
    assert queue.records.get(job).job.status == JobStatus.FAILED
    assert used_s(queue) == 120
    assert_all_adds_up(queue.records.client)


def test_an_owner_that_was_taken_for_dead_and_comes_back_is_charged_for_each_second_once(queue: Queue) -> None:
    job = submit(queue)
    [taken] = claim(queue)
    ran_for(queue, job, 40)
    run_out(queue.records.client, job)
    assert reap(queue.leases) == {job: "queued"}
    assert used_s(queue) == 40
    assert queue.leases.renew("one", [taken]) == ["ok"]
    assert queue.records.advance(job, taken.fence, JobStatus.SUCCEEDED)
    assert used_s(queue) == 40


def test_a_shared_call_is_shared_out(queue: Queue) -> None:
    for account in ("", "", "", "key:one"):
        queue.records.create(queued(batch_key="k", account=account), 100)
    claims = claim(queue, batches={MODEL: [(10**9, 4)]})
    for one in claims:
        ran_for(queue, one.job_id, 40)
        queue.records.advance(one.job_id, one.fence, JobStatus.SUCCEEDED)
    assert (used_s(queue), used_s(queue, "key:one")) == (30, 10)


def test_usage_tells_the_day_and_all_numbers(queue: Queue) -> None:
    assert queue.records.usage("nobody").submits == 0
    for _ in range(3):
        submit(queue, expected_s=2.5)
    claim(queue)
    usage = queue.records.usage("alice")
    now = datetime.fromtimestamp(redis_time(queue.records.client), UTC)
    assert usage == Usage(
        day=now.strftime("%Y-%m-%d"),
        submits=3,
        gpu_seconds=0.0,
        reserved_seconds=7.5,
        queued=2,
        running=1,
        resets_in_s=usage.resets_in_s,
    )
    assert abs(usage.resets_in_s - until_midnight(queue)) <= 2


def test_limits_come_back_from_their_json_and_a_newer_versions_are_left_out() -> None:
    limits = KeyLimits(requests_per_minute=3, gpu_seconds_per_day=1.5, models=("a", "b"))
    assert limits.to_dict() == {"requests_per_minute": 3, "gpu_seconds_per_day": 1.5, "models": ["a", "b"]}
    assert KeyLimits.from_dict(limits.to_dict() | {"max_dreams": 3}) == limits
    assert KeyLimits.from_dict({}) == KeyLimits()


#: Two requests a minute: the interval is 30 s, and the model's time goes in tens, so that real milliseconds decide
#: nothing; nor do they against five seconds of a GPU.
_LIMITS = {
    "key:a": KeyLimits(requests_per_minute=2, max_queued=3),
    "key:b": KeyLimits(max_running=1, gpu_seconds_per_day=605),
    "key:c": KeyLimits(requests_per_minute=2, max_queued=4, max_running=2, gpu_seconds_per_day=405),
}


@dataclass
class Account:
    """What the queue should know of an account; `taken_until` is when its submits count no longer, model seconds."""

    limits: KeyLimits
    taken_until: float = 0.0
    submits: int = 0
    used_s: float = 0.0
    expected: dict[str, float] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)

    def refuses(self, expected_s: float, now: float) -> str:
        """Return the limit that refuses a submit, "" for none."""
        limits = self.limits
        if limits.max_queued and len(self.expected) >= limits.max_queued:
            return "unfinished"
        if limits.requests_per_minute and max(self.taken_until, now) - now > 60 - 60 / limits.requests_per_minute:
            return "minute"
        per_day = limits.gpu_seconds_per_day
        if per_day and self.used_s + sum(self.expected.values()) + expected_s > per_day:
            return "would take more|expected to take"
        return "Nobody knows" if per_day and not expected_s and 0 in self.expected.values() else ""


class Limits(RuleBasedStateMachine):
    """Does to the queue and to the model what clients, workers and reapers do, in any order."""

    queue: Queue

    def __init__(self) -> None:
        super().__init__()
        self.queue.records.client.flushall()
        self.now = 0.0
        self.accounts = {name: Account(limits) for name, limits in _LIMITS.items()}
        self.account_of: dict[str, str] = {}
        self.held: list[tuple[Claim, int]] = []

    @rule(name=st.sampled_from(sorted(_LIMITS)), expected_s=st.sampled_from([0, 50, 200]))
    def submit(self, name: str, expected_s: int) -> None:
        account = self.accounts[name]
        expected = account.refuses(expected_s, self.now)
        terms = Terms(limits=account.limits, expected_s=expected_s)
        if expected:
            with pytest.raises(LimitReached, match=expected):
                self.queue.submit(queued(account=name, batch_key="k"), terms)
            return
        job = self.queue.submit(queued(account=name, batch_key="k"), terms).job.id
        account.submits += 1
        if account.limits.requests_per_minute:
            interval = 60 / account.limits.requests_per_minute
            account.taken_until = max(account.taken_until, self.now) + interval
        account.expected[job], self.account_of[job] = expected_s, name

    @rule(tens=st.integers(1, 4))
    def time_passes(self, tens: int) -> None:
        self.now += 10 * tens
        for key in self.queue.records.client.scan_iter("polyreel:rate:*"):
            self.queue.records.client.decrby(key, 10_000_000 * tens)

    @rule(at_most=st.integers(1, 3))
    def claim(self, at_most: int) -> None:
        claims = claim(self.queue, batches={MODEL: [(10**9, at_most)]})
        for one in claims:
            account = self.accounts[self.account_of[one.job_id]]
            assert one.job_id not in account.running
            account.running.add(one.job_id)
            self.held.append((one, len(claims)))
        for account in self.accounts.values():
            assert account.limits.max_running is None or len(account.running) <= account.limits.max_running
            has_room = account.limits.max_running is None or len(account.running) < account.limits.max_running
            assert claims or not has_room or set(account.expected) == account.running, "who may run is not passed over"

    @precondition(lambda self: self.held)
    @rule(
        which=st.integers(0, 9), hundreds=st.integers(0, 2), how=st.sampled_from(["end", "release", "cancel", "retake"])
    )
    def claim_ends(self, which: int, hundreds: int, how: str) -> None:
        one, sharing = self.held.pop(which % len(self.held))
        account = self.accounts[self.account_of[one.job_id]]
        ran_for(self.queue, one.job_id, 100 * hundreds * sharing)
        account.used_s += 100 * hundreds
        if how == "release":
            assert self.queue.records.release(one.job_id, one.fence, counted=False)
        elif how == "retake":
            run_out(self.queue.records.client, one.job_id)
            if reap(self.queue.leases)[one.job_id] == "queued":
                assert self.queue.leases.renew("one", [one]) == ["ok"]
                self.held.append((one, sharing))
                return
            del account.expected[one.job_id]
        else:
            if how == "end":
                assert self.queue.records.advance(one.job_id, one.fence, JobStatus.SUCCEEDED)
            else:
                assert self.queue.cancel(one.job_id) == "cancelled"
            del account.expected[one.job_id]
        account.running.remove(one.job_id)

    @rule()
    def repair(self) -> None:
        assert self.queue.leases.repair() == {}

    @invariant()
    def usage_is_what_happened(self) -> None:
        for name, account in self.accounts.items():
            usage = self.queue.records.usage(name)
            assert (usage.submits, usage.running) == (account.submits, len(account.running))
            assert usage.queued == len(account.expected) - len(account.running)
            assert usage.reserved_seconds == sum(account.expected.values())
            assert abs(usage.gpu_seconds - account.used_s) < 4

    def teardown(self) -> None:
        assert_all_adds_up(self.queue.records.client)


def test_the_queue_counts_as_a_simple_model_does(queue: Queue) -> None:
    class OverThisQueue(Limits):
        pass

    OverThisQueue.queue = queue
    run_state_machine_as_test(
        OverThisQueue,
        settings=settings(
            max_examples=15,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
