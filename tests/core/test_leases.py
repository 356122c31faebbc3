"""Claims and leases: a job is in one worker's hands, by Redis' clock, and comes back from the dead."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.job import JobStatus
from polyreel.leases import Claim, Leases, Wishes
from polyreel.queue import Queue
from polyreel.records import connect
from tests.core.jobs import (
    BATCHES,
    MODEL,
    LosesReplies,
    assert_all_adds_up,
    claim,
    losing_replies,
    open_queue,
    order,
    queued,
    read,
    reap,
    redis_time,
    run_out,
    take,
)


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    assert_all_adds_up(queue.records.client)
    queue.records.client.close()


def submit(queue: Queue, **fields: object) -> str:
    return queue.records.create(queued(**fields), max_open=10**6).job.id


def deadline(queue: Queue, job_id: str) -> float:
    """Return when a lease runs out, seconds of Redis' clock from now."""
    score = queue.records.client.zscore("polyreel:leases", job_id)
    assert score is not None
    return float(score) - redis_time(queue.records.client)


def test_a_claimed_job_is_its_workers_alone(queue: Queue) -> None:
    before = redis_time(queue.records.client)
    taken = take(queue)
    assert taken.fence == 1
    assert claim(queue, "two") == []
    stored = read(queue, taken.job_id)
    assert (stored.job.worker, stored.job.attempts, stored.fence, stored.claimable) == ("one", 1, 1, False)
    assert stored.job.status is JobStatus.LOADING
    assert before <= stored.job.started_at <= redis_time(queue.records.client)
    assert 10 < deadline(queue, taken.job_id) <= 20


def test_nothing_is_claimed_where_nothing_waits(queue: Queue) -> None:
    assert claim(queue) == []


def test_each_job_is_claimed_once_however_many_workers_race_and_replies_are_lost(redis_url: str) -> None:
    queue = open_queue(redis_url)
    jobs = [submit(queue, batch_key=("", "k")[number % 2]) for number in range(300)]
    dice = random.Random(7)

    def work(worker: str) -> list[Claim]:
        with losing_replies(redis_url) as mine:
            had = []
            while claims := claim(mine, worker, batches=BATCHES):
                had += claims
                if dice.random() < 0.1:
                    LosesReplies.to_lose = 1
            return had

    with ThreadPoolExecutor(8) as threads:
        had = [one for claims in threads.map(work, [f"worker {number}" for number in range(8)]) for one in claims]
    assert Counter(one.job_id for one in had) == Counter(jobs)
    assert {one.fence for one in had} == {1}
    assert {read(queue, job).job.attempts for job in jobs} == {1}
    assert_all_adds_up(queue.records.client)


def test_a_claim_whose_reply_was_lost_is_the_same_claim_when_it_is_repeated(redis_url: str) -> None:
    """Otherwise the worker would not know of the jobs that it keeps from all others."""
    with losing_replies(redis_url) as queue:
        jobs = [submit(queue, batch_key="k") for _ in range(6)]
        LosesReplies.to_lose = 1
        assert claim(queue, batches=BATCHES) == [Claim(job, 1) for job in jobs[:4]]
        assert LosesReplies.to_lose == 0
        assert [one.job_id for one in claim(queue, batches=BATCHES)] == jobs[4:], "the next claim is another one"
        assert_all_adds_up(queue.records.client)


def test_the_same_claim_again_gives_the_same_jobs(queue: Queue) -> None:
    for _ in range(6):
        submit(queue, batch_key="k")
    sent = []
    real = queue.leases._claim

    def script(args: list[object]) -> object:
        sent.append(args)
        return real(args=args)

    queue.leases._claim = script
    claims = claim(queue, batches=BATCHES)
    again = real(args=sent[0])
    assert again == [part for one in claims for part in (one.job_id, str(one.fence))]
    assert len(order(queue.records.client)) == 2
    assert 0 < queue.records.client.ttl("polyreel:claim:one") <= 300


def test_a_renewal_lengthens_the_lease(queue: Queue) -> None:
    taken = take(queue)
    queue.records.client.zadd("polyreel:leases", {taken.job_id: redis_time(queue.records.client) + 1})
    assert queue.leases.renew("one", [taken]) == ["ok"]
    assert 10 < deadline(queue, taken.job_id) <= 20


def test_a_renewal_says_what_became_of_each_job(queue: Queue) -> None:
    mine, lost, done, failed, cancelled = (take(queue) for _ in range(5))
    queue.records.release(lost.job_id, lost.fence, counted=True)
    [theirs] = claim(queue, "two")
    queue.records.advance(done.job_id, done.fence, JobStatus.SUCCEEDED)
    queue.records.advance(failed.job_id, failed.fence, JobStatus.FAILED)
    queue.cancel(cancelled.job_id)
    claims = [mine, lost, done, failed, cancelled, Claim("no such job", 1)]
    assert queue.leases.renew("one", claims) == ["ok", "lost", "succeeded", "failed", "cancelled", "lost"]
    assert queue.leases.renew("two", [theirs]) == ["ok"]
    assert queue.leases.renew("one", []) == []


@pytest.mark.parametrize("wrong_s", [-3600, 3600])
def test_a_workers_clock_does_not_count(queue: Queue, monkeypatch: pytest.MonkeyPatch, wrong_s: int) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong_s)
    taken = take(queue)
    assert 10 < deadline(queue, taken.job_id) <= 20
    assert queue.leases.renew("one", [taken]) == ["ok"]
    assert 10 < deadline(queue, taken.job_id) <= 20
    assert reap(queue.leases) == {}
    assert abs(read(queue, taken.job_id).job.started_at - redis_time(queue.records.client)) < 60


def test_a_lease_is_reaped_once_it_has_run_out_and_not_before(redis_url: str) -> None:
    queue = open_queue(redis_url, lease_s=1.0)
    alive, dead = take(queue, "alive"), take(queue, "dead")
    began = redis_time(queue.records.client)
    until = time.monotonic() + 60
    taken: dict[str, str] = {}
    while not taken and time.monotonic() < until:
        assert queue.leases.renew("alive", [alive]) == ["ok"]
        taken = queue.leases.reap()
        time.sleep(0.05)
    assert taken == {dead.job_id: "queued"}
    assert redis_time(queue.records.client) - began > 0.9
    assert order(queue.records.client) == [dead.job_id]
    stored = read(queue, dead.job_id)
    assert (stored.claimable, stored.job.worker, stored.job.attempts) == (True, "", 1)
    assert not read(queue, alive.job_id).claimable
    assert_all_adds_up(queue.records.client)


def test_only_what_has_run_out_is_reaped_and_once(queue: Queue) -> None:
    first, second = take(queue), take(queue)
    run_out(queue.records.client, second.job_id)
    assert reap(queue.leases) == {second.job_id: "queued"}
    assert reap(queue.leases) == {}
    assert queue.leases.renew("one", [first]) == ["ok"]
    assert int(queue.records.client.hget("polyreel:counts", "requeued")) == 1


@pytest.mark.parametrize("how", ["renew", "advance"])
def test_an_owner_takes_its_job_again_while_nobody_has_claimed_it(queue: Queue, how: str) -> None:
    taken = take(queue)
    run_out(queue.records.client, taken.job_id)
    reap(queue.leases)
    if how == "renew":
        assert queue.leases.renew("one", [taken]) == ["ok"]
    else:
        assert queue.records.advance(taken.job_id, taken.fence, JobStatus.RUNNING, "one", progress=50)
    assert claim(queue, "two") == []
    stored = read(queue, taken.job_id)
    assert (stored.fence, stored.job.worker, stored.job.attempts, stored.claimable) == (1, "one", 1, False)
    assert 10 < deadline(queue, taken.job_id) <= 20


def test_a_result_counts_while_nobody_else_has_claimed_the_job(queue: Queue) -> None:
    """So Redis may be away for longer than a lease, and no video is made twice."""
    taken = take(queue)
    run_out(queue.records.client, taken.job_id)
    reap(queue.leases)
    assert queue.records.advance(taken.job_id, taken.fence, JobStatus.SUCCEEDED, "one", progress=100)
    assert read(queue, taken.job_id).job.status is JobStatus.SUCCEEDED
    assert order(queue.records.client) == []


def test_who_comes_back_after_somebody_else_has_claimed_the_job_is_refused_and_changes_nothing(queue: Queue) -> None:
    old = take(queue)
    run_out(queue.records.client, old.job_id)
    reap(queue.leases)
    [new] = claim(queue, "two")
    key = f"polyreel:job:{old.job_id}"
    before = queue.records.client.hgetall(key)
    assert (new.job_id, new.fence) == (old.job_id, 2)
    assert queue.leases.renew("one", [old]) == ["lost"]
    assert not queue.records.advance(old.job_id, old.fence, JobStatus.RUNNING, "one", progress=90)
    assert not queue.records.advance(old.job_id, old.fence, JobStatus.SUCCEEDED, "one", progress=100, outputs=[])
    assert not queue.records.advance(old.job_id, old.fence, JobStatus.FAILED, "one", error_message="no")
    assert not queue.records.release(old.job_id, old.fence, counted=False)
    assert queue.records.client.hgetall(key) == before
    assert queue.records.advance(new.job_id, new.fence, JobStatus.SUCCEEDED, "two", progress=100)
    assert queue.records.client.hget(key, "ended_by") == "2"
    assert not queue.records.advance(old.job_id, old.fence, JobStatus.SUCCEEDED, "one"), "the same end is not its own"


@pytest.mark.parametrize("counted", [True, False])
def test_a_renewal_under_way_does_not_take_a_job_again_that_its_worker_has_given_back(
    queue: Queue, counted: bool
) -> None:
    """Its keeper may send one at the same moment, and nobody would run the job until that lease had run out."""
    taken = take(queue)
    assert queue.records.release(taken.job_id, taken.fence, counted=counted)
    assert queue.leases.renew("one", [taken]) == ["lost"]
    assert not queue.records.advance(taken.job_id, taken.fence, JobStatus.RUNNING, "one")
    assert [one.job_id for one in claim(queue, "two")] == [taken.job_id]


def test_the_jobs_of_a_worker_that_is_known_to_be_dead_are_taken_at_once_and_no_others(queue: Queue) -> None:
    dead = [take(queue, "dead") for _ in range(2)]
    alive = take(queue, "alive")
    queue.leases.beat("dead", {"loaded": [MODEL]})
    assert queue.leases.expire_worker("dead") == {one.job_id: "queued" for one in dead}
    assert queue.leases.expire_worker("dead") == {}
    assert queue.leases.renew("alive", [alive]) == ["ok"]
    client = queue.records.client
    assert (client.exists("polyreel:worker:dead"), client.hgetall("polyreel:residents")) == (0, {})


def test_a_worker_that_had_to_be_killed_at_a_stop_made_no_attempt_and_gets_its_job_back_by_nothing(
    queue: Queue,
) -> None:
    job = submit(queue)
    for fence in range(1, 6):  # deployments; the jobs of three dead workers would have failed
        [taken] = claim(queue, "deaf")
        assert taken == Claim(job, fence)
        assert queue.leases.expire_worker("deaf", counted=False) == {job: "queued"}
        assert queue.leases.expire_worker("deaf") == {}, "what its keeper says when it is dead"
        assert queue.leases.renew("deaf", [taken]) == ["lost"]
        assert not queue.records.advance(job, fence, JobStatus.RUNNING, "deaf")
    assert (read(queue, job).claimable, read(queue, job).job.attempts) == (True, 0)


def test_a_job_whose_third_worker_died_fails(queue: Queue) -> None:
    job = submit(queue)
    for attempt in (1, 2, 3):
        [taken] = claim(queue, f"worker {attempt}")
        assert taken == Claim(job, attempt)
        run_out(queue.records.client, job)
        assert reap(queue.leases) == {job: "queued" if attempt < 3 else "failed"}
    failed = read(queue, job).job
    assert (failed.status, failed.error_code, failed.attempts) == (JobStatus.FAILED, "worker_died", 3)
    assert failed.error_message == "The worker died 3 times while it ran this job; it is not tried again."
    assert claim(queue) == []
    assert not queue.records.advance(job, 3, JobStatus.SUCCEEDED), "should it not be dead after all"


def test_three_workers_that_are_known_to_be_dead_are_enough_too(queue: Queue) -> None:
    job = submit(queue)
    said = []
    for _ in range(3):
        claim(queue, "dead")
        said.append(queue.leases.expire_worker("dead")[job])
    assert said == ["queued", "queued", "failed"]


@pytest.mark.parametrize(("counted", "attempts"), [(True, 1), (False, 0)])
def test_a_job_that_was_given_back_waits_again_at_its_place(queue: Queue, counted: bool, attempts: int) -> None:
    jobs = [submit(queue) for _ in range(3)]
    [taken] = claim(queue)
    assert queue.records.release(taken.job_id, taken.fence, counted=counted)
    assert not queue.records.release(taken.job_id, taken.fence, counted=counted), "once"
    assert order(queue.records.client) == jobs
    stored = read(queue, taken.job_id)
    assert (stored.claimable, stored.job.worker, stored.job.attempts) == (True, "", attempts)
    assert stored.job.status is JobStatus.LOADING, "states never move back"


def test_a_drained_workers_job_may_be_given_back_any_number_of_times(queue: Queue) -> None:
    job = submit(queue)
    for fence in range(1, 6):
        assert claim(queue) == [Claim(job, fence)]
        assert queue.records.release(job, fence, counted=False)
    assert read(queue, job).job.attempts == 0


def test_the_third_attempt_that_is_given_back_counted_fails(queue: Queue) -> None:
    job = submit(queue)
    for fence in (1, 2, 3):
        claim(queue)
        assert queue.records.release(job, fence, counted=True)
    assert read(queue, job).job.status is JobStatus.FAILED


def test_one_of_a_batch_may_end_while_the_others_are_reaped(queue: Queue) -> None:
    jobs = [submit(queue, batch_key="k") for _ in range(3)]
    claims = claim(queue, batches=BATCHES)
    assert queue.records.advance(jobs[1], claims[1].fence, JobStatus.SUCCEEDED)
    run_out(queue.records.client, *jobs)
    assert reap(queue.leases) == {jobs[0]: "queued", jobs[2]: "queued"}
    assert order(queue.records.client) == [jobs[0], jobs[2]]


def test_who_begins_to_reap_waits_one_lease_first(queue: Queue) -> None:
    """Nobody reaped before, so nobody knows whether Redis was there."""
    taken = take(queue)
    run_out(queue.records.client, taken.job_id)
    assert queue.leases.reap() == {}
    hold = float(queue.records.client.hget("polyreel:reaper", "hold")) - redis_time(queue.records.client)
    assert 10 < hold <= 20
    assert queue.leases.reap() == {}
    queue.records.client.hset("polyreel:reaper", "hold", redis_time(queue.records.client) - 1)
    assert queue.leases.reap() == {taken.job_id: "queued"}


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = start_embedded(tmp_path)
    yield broker
    if broker.process.poll() is None:
        os.kill(broker.process.pid, signal.SIGCONT)
        broker.stop()


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_nobody_loses_a_job_because_redis_was_away_for_longer_than_a_lease(
    own_broker: EmbeddedBroker, tmp_path: Path, how: str
) -> None:
    queue = open_queue(own_broker.url, lease_s=1.0, patient=True)
    alive, dead = take(queue, "alive"), take(queue, "dead")
    queue.leases.reap()
    queue.records.client.hset("polyreel:reaper", "hold", 0)
    if how == "stopped":
        os.kill(own_broker.process.pid, signal.SIGSTOP)
        time.sleep(1.2)
        os.kill(own_broker.process.pid, signal.SIGCONT)
        broker = own_broker
    else:
        own_broker.process.kill()
        own_broker.process.wait()
        time.sleep(1.2)
        broker = start_embedded(tmp_path)
    back = redis_time(queue.records.client)
    assert queue.leases.reap() == {}, "both leases have run out, and say nothing"
    until = time.monotonic() + 60
    taken: dict[str, str] = {}
    while not taken and time.monotonic() < until:
        assert queue.leases.renew("alive", [alive]) == ["ok"]
        taken = queue.leases.reap()
        time.sleep(0.05)
    assert taken == {dead.job_id: "queued"}
    assert redis_time(queue.records.client) - back > 0.9
    assert read(queue, alive.job_id).job.attempts == 1
    assert_all_adds_up(queue.records.client)
    queue.records.client.close()
    broker.stop()


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_a_jump_of_redis_clock_takes_no_job_from_the_living_and_frees_those_of_the_dead(
    queue: Queue, jump_s: int
) -> None:
    """All that Redis remembers of the time before lies an hour off then."""
    client = queue.records.client
    alive, dead = take(queue, "alive"), take(queue, "dead")
    now = redis_time(client)
    client.hset("polyreel:reaper", mapping={"last": now - jump_s, "hold": 0})
    client.zadd("polyreel:leases", dict.fromkeys([alive.job_id, dead.job_id], now - jump_s + 20))
    assert queue.leases.reap() == {}
    assert queue.leases.renew("alive", [alive]) == ["ok"]
    hold = float(client.hget("polyreel:reaper", "hold"))
    assert float(client.zscore("polyreel:leases", dead.job_id)) <= hold < redis_time(client) + 21
    client.hset("polyreel:reaper", "hold", 0)
    if jump_s < 0:
        run_out(client, dead.job_id)  # its twenty seconds pass
    assert queue.leases.reap() == {dead.job_id: "queued"}


def test_a_hold_of_before_a_jump_does_not_last_an_hour(queue: Queue) -> None:
    taken = take(queue)
    now = redis_time(queue.records.client)
    queue.records.client.hset("polyreel:reaper", mapping={"last": now + 3600, "hold": now + 3620})
    run_out(queue.records.client, taken.job_id)
    queue.leases.reap()
    assert float(queue.records.client.hget("polyreel:reaper", "hold")) <= redis_time(queue.records.client) + 20


def test_a_heartbeat_tells_what_a_worker_has_in_memory_and_runs_out(queue: Queue) -> None:
    client = queue.records.client
    queue.leases.beat("one", {"loaded": [MODEL], "job": "a"})
    assert client.get("polyreel:worker:one") == '{"loaded": ["ltx-tiny"], "job": "a"}'
    assert 10 < client.ttl("polyreel:worker:one") <= 15
    queue.leases.leave("one")
    assert (client.exists("polyreel:worker:one"), client.hgetall("polyreel:residents")) == (0, {})


def test_leases_need_nothing_but_a_client(redis_url: str) -> None:
    """A keeper has no queue; it renews and reaps with the same scripts."""
    queue = open_queue(redis_url)
    taken = take(queue)
    with connect(redis_url, patient=False) as client:
        leases = Leases(client, retention_s=60, lease_s=8.0)
        assert leases.renew_s == 2.0
        assert leases.renew("one", [taken]) == ["ok"]
        assert leases.claim("two", Wishes([MODEL])) == []
    assert deadline(queue, taken.job_id) <= 8


def test_a_second_attempt_can_be_cancelled_although_the_first_had_begun_to_store(queue: Queue) -> None:
    """The status never goes back, so it is not what tells whether a file is in the making."""
    job_id = submit(queue)
    [first] = claim(queue, "one")
    assert queue.records.advance(first.job_id, first.fence, JobStatus.ENCODING, "one")
    assert queue.cancel(job_id) == "finishing"
    queue.leases.expire_worker("one")
    [second] = claim(queue, "two")
    assert second.fence == 2
    assert queue.cancel(job_id) == "cancelled"


def test_one_whose_worker_died_while_storing_can_be_cancelled_before_anybody_notices(queue: Queue) -> None:
    job_id = submit(queue)
    [one] = claim(queue)
    queue.records.advance(one.job_id, one.fence, JobStatus.ENCODING)
    queue.records.client.zadd("polyreel:leases", {job_id: 1.0})
    assert queue.cancel(job_id) == "cancelled"


def test_a_worker_beats_while_the_memory_of_redis_is_full(queue: Queue) -> None:
    client = queue.records.client
    client.config_set("maxmemory", "1")
    try:
        queue.leases.beat("one", {"models": [MODEL], "loaded": [MODEL], "loading": "atelier"})
        assert queue.leases.repair(every_s=10) == {}
    finally:
        client.config_set("maxmemory", "0")
    assert json.loads(client.get("polyreel:worker:one"))["models"] == [MODEL]
    assert json.loads(client.hget("polyreel:residents", "one"))["models"] == [MODEL, "atelier"]


def test_of_several_repairs_in_a_row_one_is_done(queue: Queue) -> None:
    job_id = submit(queue)
    assert queue.leases.repair(every_s=10) == {}
    queue.records.client.zrem(f"polyreel:ready:{MODEL}", job_id)
    assert queue.leases.repair(every_s=10) == {}
    assert list(queue.leases.repair()) == [job_id]
