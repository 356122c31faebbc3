"""Webhooks that wait: put into line by the end of a job, taken under leases, tried again, given up, asked for again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from polyreel.broker import EmbeddedBroker
from polyreel.errors import NotDeliverable, UnknownJob
from polyreel.job import MAX_ATTEMPTS, JobStatus
from polyreel.queue import Queue
from polyreel.webhooks import SCHEDULE_S, Attempt, Hands, Schedule, Taken, Webhooks
from tests.core.jobs import LosesReplies, claim, losing_replies, open_queue, queued, reap, redis_time, run_out

URL = "https://hooks.example/polyreel"
MANY = Hands(100, 100)


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    queue.records.client.close()


@pytest.fixture
def webhooks(queue: Queue) -> Webhooks:
    return Webhooks(queue.records.client)


def submit(queue: Queue, webhook: str = URL, **fields: object) -> str:
    return queue.records.create(queued(webhook=webhook, **fields), max_open=1000).job.id


def ended(queue: Queue, webhook: str = URL, **fields: object) -> str:
    """Return a job that was cancelled, which is an end as good as any."""
    job_id = submit(queue, webhook, **fields)
    assert queue.cancel(job_id) == "cancelled"
    return job_id


def take(webhooks: Webhooks, hands: Hands = MANY) -> list[Taken]:
    return webhooks.take("courier", hands)


def take_one(webhooks: Webhooks) -> Taken:
    [taken] = take(webhooks)
    return taken


def failed(taken: Taken) -> Attempt:
    return Attempt(taken.attempt, 500, "answered 500", 12)


def make_due(client: redis.Redis, receiver: str = "hooks.example") -> None:
    """Let the time until the next tries of a receiver pass."""
    for job_id in client.zrange(f"polyreel:webhooks:line:{receiver}", 0, -1):
        client.zadd(f"polyreel:webhooks:line:{receiver}", {job_id: redis_time(client) - 1})
    client.zadd("polyreel:webhooks", {receiver: redis_time(client) - 1})


def kill_courier(client: redis.Redis) -> None:
    """Let all leases run out, as when nobody ends his deliveries."""
    for member in client.zrange("polyreel:webhooks:leases", 0, -1):
        client.zadd("polyreel:webhooks:leases", {member: redis_time(client) - 1})


def left(client: redis.Redis) -> list[str]:
    """Return the keys of what waits or is under way."""
    keys = ["polyreel:webhooks", "polyreel:webhooks:leases", *client.scan_iter("polyreel:webhooks:line:*")]
    return [key for key in keys if client.exists(key)]


def counts(client: redis.Redis) -> dict[str, int]:
    found = client.hgetall("polyreel:counts")
    return {name: int(found[name]) for name in sorted(found) if name.startswith("webhooks_")}


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "worker_died"])
def test_every_end_of_a_job_puts_its_webhook_into_line_in_the_same_step(
    queue: Queue, webhooks: Webhooks, end: str
) -> None:
    job_id = submit(queue)
    assert take(webhooks) == [], "not before the end"
    if end == "cancelled":
        queue.cancel(job_id)
    elif end == "worker_died":
        for _ in range(MAX_ATTEMPTS):
            claim(queue)
            run_out(queue.records.client, job_id)
            reap(queue.leases)
        assert queue.records.get(job_id).job.error_code == "worker_died"
    else:
        [claimed] = claim(queue)
        assert queue.records.advance(job_id, claimed.fence, JobStatus(end))
    assert take(webhooks) == [Taken(job_id, 1, 1, "hooks.example", False)]
    assert take(webhooks) == [], "one at a time"


def test_a_job_without_a_webhook_waits_for_nobody(queue: Queue, webhooks: Webhooks) -> None:
    ended(queue, "")
    old = submit(queue)
    queue.records.client.hdel(f"polyreel:job:{old}", "webhook")  # a record of the previous version
    assert queue.cancel(old) == "cancelled"
    assert take(webhooks) == []
    assert left(queue.records.client) == []


def test_what_was_delivered_is_over(queue: Queue, webhooks: Webhooks) -> None:
    job_id = ended(queue)
    taken = take_one(webhooks)
    assert webhooks.deliveries(job_id).state == "pending"
    assert webhooks.note(taken, Attempt(1, 200, "", 34), "delivered") == "delivered"
    found = webhooks.deliveries(job_id)
    assert (found.state, found.attempts, found.next_at) == ("delivered", 1, None)
    assert [replace(entry, at=0) for entry in found.log] == [Attempt(1, 200, "", 34)]
    assert found.log[0].at == pytest.approx(redis_time(queue.records.client), abs=5)
    assert left(queue.records.client) == []
    assert counts(queue.records.client) == {"webhooks_delivered": 1}


def test_a_failed_one_is_due_again_after_its_pause(queue: Queue, webhooks: Webhooks) -> None:
    client, job_id = queue.records.client, ended(queue)
    assert webhooks.note(take_one(webhooks), Attempt(1, None, "refused", 3), "retry", 300.0) == "pending"
    assert take(webhooks) == [], "not before its time"
    found = webhooks.deliveries(job_id)
    assert found.next_at == pytest.approx(redis_time(client) + 300, abs=5)
    assert found.log[0].next_at == pytest.approx(found.next_at, abs=0.001)
    make_due(client)
    assert take(webhooks) == [Taken(job_id, 2, 2, "hooks.example", False)]
    assert counts(client) == {"webhooks_retried": 1}


def test_one_that_is_given_up_is_not_taken_again(queue: Queue, webhooks: Webhooks) -> None:
    job_id = ended(queue)
    taken = take_one(webhooks)
    assert webhooks.note(taken, Attempt(1, 410, "gone", 3), "failed") == "failed"
    assert webhooks.deliveries(job_id).state == "failed"
    assert left(queue.records.client) == []
    assert counts(queue.records.client) == {"webhooks_failed": 1}


def test_a_note_whose_reply_was_lost_is_made_once(queue: Queue, webhooks: Webhooks) -> None:
    job_id = ended(queue)
    taken = take_one(webhooks)
    for _ in range(3):
        assert webhooks.note(taken, failed(taken), "retry", 300.0) == "pending"
    assert len(webhooks.deliveries(job_id).log) == 1
    assert counts(queue.records.client) == {"webhooks_retried": 1}


def test_a_dead_couriers_delivery_is_taken_by_another(queue: Queue, webhooks: Webhooks) -> None:
    job_id = ended(queue)
    take_one(webhooks)
    kill_courier(queue.records.client)
    assert webhooks.take("another", MANY) == [Taken(job_id, 2, 2, "hooks.example", False)]


def test_a_lease_from_before_the_clock_was_put_back_is_not_waited_for(queue: Queue, webhooks: Webhooks) -> None:
    client = queue.records.client
    job_id = ended(queue)
    take_one(webhooks)
    client.zadd("polyreel:webhooks:leases", {f"{job_id} hooks.example": redis_time(client) + 3600})
    assert take(webhooks) == []
    [(_, ends_at)] = client.zrange("polyreel:webhooks:leases", 0, -1, withscores=True)
    assert ends_at == pytest.approx(redis_time(client) + 30, abs=5)


def test_one_that_no_courier_survives_is_given_up(queue: Queue, webhooks: Webhooks) -> None:
    job_id = ended(queue)
    for _ in SCHEDULE_S:
        take_one(webhooks)
        kill_courier(queue.records.client)
    assert take(webhooks) == []
    found = webhooks.deliveries(job_id)
    assert (found.state, found.attempts, found.log) == ("failed", 10, ())
    assert left(queue.records.client) == []


def test_a_success_counts_whoever_brings_it(queue: Queue, webhooks: Webhooks) -> None:
    """The first courier was only slow; the second one's failure must not bring the message a third time."""
    job_id = ended(queue)
    slow = take_one(webhooks)
    kill_courier(queue.records.client)
    second = take_one(webhooks)
    assert webhooks.note(slow, Attempt(1, 200, "", 40_000), "delivered") == "delivered"
    assert webhooks.note(second, failed(second), "retry", 0.0) == "delivered"
    assert webhooks.deliveries(job_id).state == "delivered"
    assert left(queue.records.client) == []
    assert counts(queue.records.client) == {"webhooks_delivered": 1}


def test_what_a_slow_courier_brought_is_not_brought_again_when_the_next_one_dies(
    queue: Queue, webhooks: Webhooks
) -> None:
    ended(queue)
    slow = take_one(webhooks)
    kill_courier(queue.records.client)
    take_one(webhooks)
    webhooks.note(slow, Attempt(1, 200, "", 40_000), "delivered")
    kill_courier(queue.records.client)
    assert take(webhooks) == []
    assert left(queue.records.client) == []


def test_an_older_failure_takes_nothing_from_who_has_the_delivery_now(queue: Queue, webhooks: Webhooks) -> None:
    job_id = ended(queue)
    slow = take_one(webhooks)
    kill_courier(queue.records.client)
    second = take_one(webhooks)
    assert webhooks.note(slow, failed(slow), "retry", 0.0) == "pending"
    assert take(webhooks) == []
    assert webhooks.note(second, Attempt(2, 204, "", 5), "delivered") == "delivered"
    assert [entry.attempt for entry in webhooks.deliveries(job_id).log] == [1, 2]


def test_a_receiver_has_two_deliveries_at_a_time_over_all_couriers(queue: Queue, webhooks: Webhooks) -> None:
    for _ in range(5):
        ended(queue, "https://slow.example/a")
    last = ended(queue, "https://OTHER.example:8443/b?c#d")
    first = webhooks.take("one", MANY)
    assert [taken.receiver for taken in first] == ["slow.example", "slow.example", "other.example:8443"]
    assert first[-1].job_id == last, "who came last does not wait for a receiver that hangs"
    assert webhooks.take("two", MANY) == []
    webhooks.note(first[0], Attempt(1, 200, "", 9), "delivered")
    assert [taken.receiver for taken in webhooks.take("two", MANY)] == ["slow.example"]


def test_an_owner_whose_receivers_hang_leaves_hands_free_for_others(queue: Queue, webhooks: Webhooks) -> None:
    for n in range(32):
        ended(queue, f"https://of-mallory{n}.example/", owner="mallory")
    of_alice = ended(queue)
    taken = take(webhooks)
    assert len(taken) == 29
    assert taken[-1].job_id == of_alice
    assert take(webhooks) == []
    webhooks.note(taken[0], failed(taken[0]), "retry", 300.0)
    assert len(take(webhooks)) == 1


def test_new_receivers_leave_hands_free_for_those_that_took_the_last_message(queue: Queue, webhooks: Webhooks) -> None:
    ended(queue, "https://proven.example/")
    webhooks.note(take_one(webhooks), Attempt(1, 200, "", 9), "delivered")
    for n in range(9):
        ended(queue, f"https://new{n}.example/")
    known = ended(queue, "https://proven.example/")
    taken = take(webhooks, Hands(4, 3))
    assert [one.is_proven for one in taken] == [False, False, False, True]
    assert taken[-1].job_id == known
    assert take(webhooks, Hands(1, 0)) == []
    webhooks.note(taken[-1], failed(taken[-1]), "retry", 0.0)
    assert take(webhooks, Hands(1, 0)) == [], "it failed, so it is as good as a new one"


def test_a_thousand_new_receivers_do_not_hide_one_that_is_known(queue: Queue, webhooks: Webhooks) -> None:
    """They cost whoever makes them a name each and a job that is cancelled at once."""
    client = queue.records.client
    ended(queue, "https://proven.example/")
    webhooks.note(take_one(webhooks), Attempt(1, 200, "", 9), "delivered")
    long_ago = redis_time(client) - 60
    with client.pipeline() as pipeline:
        for n in range(1000):
            pipeline.zadd(f"polyreel:webhooks:line:new{n}.example", {f"job-{n}": long_ago})
            pipeline.zadd("polyreel:webhooks", {f"new{n}.example": long_ago})
        pipeline.execute()
    known = ended(queue, "https://proven.example/")
    assert [taken.job_id for taken in take(webhooks, Hands(1, 0))] == [known]
    later = ended(queue, "https://proven.example/")
    client.zadd("polyreel:webhooks:line:proven.example", {later: redis_time(client) + 60})
    client.zadd("polyreel:webhooks", {"proven.example": redis_time(client) + 60})
    assert take(webhooks, Hands(1, 0)) == [], "not before it is due"


def test_the_webhook_of_a_job_that_is_gone_is_dropped(queue: Queue, webhooks: Webhooks) -> None:
    client = queue.records.client
    client.delete(f"polyreel:job:{ended(queue)}")
    assert take(webhooks) == []
    assert left(client) == []
    assert counts(client) == {"webhooks_failed": 1}


def test_all_about_a_delivery_goes_with_the_jobs_record(queue: Queue, webhooks: Webhooks) -> None:
    client, job_id = queue.records.client, ended(queue, keep_s=20.0)
    taken = take_one(webhooks)
    assert 0 < client.ttl(f"polyreel:webhook:{job_id}") <= 20
    webhooks.note(taken, failed(taken), "retry", 300.0)
    for key in (f"polyreel:webhook:{job_id}", f"polyreel:webhook:log:{job_id}"):
        assert 0 < client.ttl(key) <= 20
    make_due(client)
    taken = take_one(webhooks)
    client.delete(f"polyreel:job:{job_id}")
    webhooks.note(taken, failed(taken), "retry", 300.0)
    assert client.keys("polyreel:webhook:*") == []


@pytest.mark.parametrize("is_under_way", [False, True])
def test_a_deleted_job_leaves_nothing_behind(queue: Queue, webhooks: Webhooks, is_under_way: bool) -> None:
    client, job_id = queue.records.client, ended(queue)
    taken = take_one(webhooks)
    webhooks.note(taken, failed(taken), "retry", 300.0)
    if is_under_way:
        make_due(client)
        taken = take_one(webhooks)
    assert queue.delete(job_id)
    assert left(client) == []
    if is_under_way:
        webhooks.note(taken, failed(taken), "retry", 300.0)
    make_due(client)
    assert take(webhooks) == []
    assert left(client) == []
    assert client.keys("polyreel:webhook:*") == []


def test_the_log_keeps_the_newest_attempts(queue: Queue, webhooks: Webhooks) -> None:
    job_id = ended(queue)
    for n in range(1, 61):
        webhooks.note(take_one(webhooks), Attempt(n, 500, "answered 500", 1), "failed")
        webhooks.redeliver(job_id)
    assert [entry.attempt for entry in webhooks.deliveries(job_id).log] == list(range(11, 61))


@pytest.mark.parametrize("outcome", ["delivered", "failed", "retry"])
def test_a_delivery_can_be_asked_for_again_with_all_its_tries(queue: Queue, webhooks: Webhooks, outcome: str) -> None:
    job_id = ended(queue)
    webhooks.note(take_one(webhooks), Attempt(1, 500, "", 1), outcome, 300.0)
    webhooks.redeliver(job_id)
    assert webhooks.deliveries(job_id).state == "pending"
    assert take(webhooks) == [Taken(job_id, 2, 1, "hooks.example", outcome == "delivered")]


def test_one_that_is_under_way_is_not_begun_twice(queue: Queue, webhooks: Webhooks) -> None:
    job_id = ended(queue)
    take_one(webhooks)
    webhooks.redeliver(job_id)
    assert take(webhooks) == []
    kill_courier(queue.records.client)
    assert take_one(webhooks).attempt_of_round == 1, "and has all its tries if it comes to nothing"


@pytest.mark.parametrize("outcome", ["failed", "retry"])
def test_asked_for_during_an_attempt_that_comes_to_nothing_it_is_tried_again_now(
    queue: Queue, webhooks: Webhooks, outcome: str
) -> None:
    job_id = ended(queue)
    last = take_one(webhooks)
    webhooks.redeliver(job_id)
    assert webhooks.note(last, failed(last), outcome, 300.0) == "pending"
    assert take(webhooks) == [Taken(job_id, 2, 1, "hooks.example", False)]


def test_asked_for_during_an_attempt_that_succeeds_it_has_been_delivered(queue: Queue, webhooks: Webhooks) -> None:
    job_id = ended(queue)
    taken = take_one(webhooks)
    webhooks.redeliver(job_id)
    assert webhooks.note(taken, Attempt(1, 200, "", 9), "delivered") == "delivered"
    assert take(webhooks) == []


def test_what_there_is_not_cannot_be_delivered_again(queue: Queue, webhooks: Webhooks) -> None:
    with pytest.raises(UnknownJob, match="No job has this id"):
        webhooks.redeliver("00000000-0000-0000-0000-000000000000")
    with pytest.raises(NotDeliverable, match="without a webhook"):
        webhooks.redeliver(ended(queue, ""))
    with pytest.raises(NotDeliverable, match="has not ended yet"):
        webhooks.redeliver(submit(queue))


def test_lost_replies_change_nothing(queue: Queue, broker: EmbeddedBroker) -> None:
    job_id = ended(queue)
    with losing_replies(broker.url) as losing:
        webhooks = Webhooks(losing.records.client)
        assert take(webhooks, Hands(0, 0)) == []  # loads the script
        LosesReplies.to_lose = 1
        assert take(webhooks) == [Taken(job_id, 1, 1, "hooks.example", False)]
        LosesReplies.to_lose = 1
        assert webhooks.note(Taken(job_id, 1, 1, "hooks.example", False), Attempt(1, 500, "", 1), "retry", 300.0)
    assert queue.webhooks.deliveries(job_id).attempts == 1
    assert len(queue.webhooks.deliveries(job_id).log) == 1
    assert counts(queue.records.client) == {"webhooks_retried": 1}


def test_a_courier_that_finds_nothing_writes_nothing(queue: Queue, webhooks: Webhooks) -> None:
    """Each write is flushed to disk, and it looks four times a second."""
    take(webhooks)
    before = queue.records.client.info("persistence")["rdb_changes_since_last_save"]
    for _ in range(5):
        take(webhooks)
    assert queue.records.client.info("persistence")["rdb_changes_since_last_save"] == before


def test_a_courier_that_comes_for_work_is_seen(queue: Queue, webhooks: Webhooks) -> None:
    client = queue.records.client
    webhooks.take("here", MANY)
    assert client.zrange("polyreel:webhooks:couriers", 0, -1) == ["here"]
    assert 0 < client.ttl("polyreel:webhooks:couriers") <= 15


def test_the_schedule_is_that_of_standard_webhooks_with_a_fifth_of_jitter() -> None:
    schedule = Schedule()
    assert [schedule.after_s(tried, 0.5) for tried in range(1, 11)] == [
        5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400, None,
    ]  # fmt: skip
    assert (schedule.after_s(1, 0.0), schedule.after_s(1, 1.0)) == (4.0, 6.0)
    assert Schedule(scale=0.001).after_s(9, 0.5) == pytest.approx(86.4)
