"""Repair: records and orders come together again, whatever a crash, a careless hand or an older version left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from polyreel.job import SCHEMA, JobStatus, Output
from polyreel.leases import Claim
from polyreel.queue import Queue
from tests.core.jobs import (
    MODEL,
    REQUEST,
    assert_all_adds_up,
    claim,
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
    queue.records.client.close()


def submit(queue: Queue, **fields: object) -> str:
    return queue.records.create(queued(**fields), max_open=1000).job.id


def repaired(queue: Queue) -> dict[str, str]:
    """Repair twice: the second time there is nothing to do."""
    said = queue.leases.repair()
    assert queue.leases.repair() == {}
    assert_all_adds_up(queue.records.client)
    return said


def take_next(queue: Queue) -> Claim:
    """Claim the job that is first."""
    [taken] = claim(queue)
    return taken


def test_where_nothing_is_broken_nothing_is_repaired(queue: Queue) -> None:
    for _ in range(3):
        submit(queue)
    claim(queue)
    taken = take_next(queue)
    queue.records.advance(taken.job_id, taken.fence, JobStatus.SUCCEEDED)
    keys = sorted(queue.records.client.scan_iter())
    assert repaired(queue) == {}
    assert sorted(queue.records.client.scan_iter()) == keys


def test_jobs_that_fell_out_of_the_order_are_put_back_in_the_order_of_their_coming(queue: Queue) -> None:
    jobs = [submit(queue) for _ in range(5)]
    before = order(queue.records.client)
    queue.records.client.delete(f"polyreel:ready:{MODEL}", f"rq:queue:{MODEL}")
    assert repaired(queue) == dict.fromkeys(jobs, "put back into the order")
    assert order(queue.records.client) == before


def test_one_that_fell_out_of_the_order_is_put_before_all_others(queue: Queue) -> None:
    """Nobody knows its turn any more, and it has waited for a repair already."""
    jobs = [submit(queue) for _ in range(4)]
    queue.records.client.zrem(f"polyreel:ready:{MODEL}", jobs[2])
    assert repaired(queue) == {jobs[2]: "put back into the order"}
    assert order(queue.records.client) == [jobs[2], jobs[0], jobs[1], jobs[3]]


def test_a_lost_state_of_the_order_leaves_every_job_in_it(queue: Queue) -> None:
    jobs = [submit(queue) for _ in range(3)]
    queue.records.client.delete(f"polyreel:fair:{MODEL}")
    queue.records.client.zrem(f"polyreel:ready:{MODEL}", jobs[0])
    assert repaired(queue) == {jobs[0]: "put back into the order"}
    jobs.append(submit(queue))
    assert sorted(one.job_id for _ in jobs for one in claim(queue)) == sorted(jobs)


@pytest.mark.parametrize("model_known", [True, False])
def test_rqs_list_shows_the_order_again(queue: Queue, model_known: bool) -> None:
    jobs = [submit(queue) for _ in range(3)]
    if not model_known:
        queue.records.client.delete("polyreel:models")
    queue.records.client.delete(f"rq:queue:{MODEL}")
    assert repaired(queue) == {}
    assert sorted(queue.records.client.lrange(f"rq:queue:{MODEL}", 0, -1)) == sorted(jobs)


def test_what_was_planted_in_rqs_list_is_taken_out_and_never_ran(queue: Queue) -> None:
    client = queue.records.client
    job = submit(queue)
    client.rpush(f"rq:queue:{MODEL}", "planted", job, "planted")
    client.hset("rq:job:planted", mapping={"data": "os.system", "origin": MODEL, "status": "queued"})
    assert [one.job_id for _ in range(3) for one in claim(queue)] == [job]
    assert repaired(queue) == dict.fromkeys(["planted", job], "taken out of the list: it does not wait")
    assert client.lrange(f"rq:queue:{MODEL}", 0, -1) == []


def test_an_id_that_was_planted_in_the_order_is_no_job(queue: Queue) -> None:
    job = submit(queue)
    queue.records.client.zadd(f"polyreel:ready:{MODEL}", {"planted": -5})
    assert repaired(queue) == {"planted": "taken out of the order"}
    queue.records.client.zadd(f"polyreel:ready:{MODEL}", {"planted": -5})
    assert [one.job_id for one in claim(queue)] == [job]


@pytest.mark.parametrize("place", ["waiting", "claimed"])
def test_an_unfinished_job_without_a_record_is_forgotten(queue: Queue, place: str) -> None:
    gone = take(queue).job_id if place == "claimed" else submit(queue)
    kept = submit(queue, owner="bob")
    queue.records.client.delete(f"polyreel:job:{gone}")
    queue.records.client.hset("polyreel:counts", "submitted", 1)  # it is not among the records that are counted
    assert gone in repaired(queue)
    assert queue.records.open_ids() == [kept]
    assert queue.records.client.zcard("polyreel:leases") == 0


def test_a_claimed_job_without_a_lease_is_given_one_that_runs_out(queue: Queue) -> None:
    taken = take(queue)
    queue.records.client.delete("polyreel:leases", f"rq:wip:{MODEL}")
    assert repaired(queue) == {taken.job_id: "given a lease"}
    assert queue.leases.renew("one", [taken]) == ["ok"]
    run_out(queue.records.client, taken.job_id)
    assert reap(queue.leases) == {taken.job_id: "queued"}
    assert_all_adds_up(queue.records.client)


@pytest.mark.parametrize("end", [None, "cancelled"])
def test_a_lease_of_a_job_that_nobody_has_is_ended(queue: Queue, end: str | None) -> None:
    job = submit(queue)
    if end:
        queue.cancel(job)
    queue.records.client.zadd("polyreel:leases", {job: redis_time(queue.records.client) + 1000})
    repaired(queue)
    assert queue.records.client.zcard("polyreel:leases") == 0
    assert len(claim(queue)) == (0 if end else 1)


def test_a_job_that_is_missing_among_the_unfinished_is_put_back(queue: Queue) -> None:
    waiting = [submit(queue) for _ in range(2)]
    [taken] = claim(queue)
    queue.records.client.delete("polyreel:open", "polyreel:open:owners")
    assert repaired(queue) == dict.fromkeys(waiting, "put back among the unfinished")
    assert queue.records.open_ids() == waiting
    assert taken.job_id == waiting[0]


def test_an_ended_job_is_taken_from_wherever_it_still_lies(queue: Queue) -> None:
    client = queue.records.client
    job = submit(queue)
    queue.cancel(job)
    client.zadd("polyreel:open", {job: 1})
    client.zadd(f"polyreel:ready:{MODEL}", {job: 1})
    client.rpush(f"rq:queue:{MODEL}", job)
    assert repaired(queue) == {job: "taken out of the order"}


def test_what_lies_in_rqs_registry_without_a_lease_is_taken_out(queue: Queue) -> None:
    client = queue.records.client
    taken = take(queue)
    ahead = redis_time(client) + 86400
    client.zadd(f"rq:wip:{MODEL}", {"gone:1": ahead, f"{taken.job_id}:older": ahead})
    assert repaired(queue) == {}
    assert len(client.zrange(f"rq:wip:{MODEL}", 0, -1)) == 1


def test_owners_are_counted_anew(queue: Queue) -> None:
    """A count that is too high would refuse its owner for ever."""
    queue.max_open_of_owner = 3
    submit(queue)
    submit(queue, owner="bob")
    queue.records.client.hset("polyreel:open:owners", mapping={"alice": 3, "carol": 7})
    assert repaired(queue) == {}
    assert queue.records.client.hgetall("polyreel:open:owners") == {"alice": "1", "bob": "1"}
    queue.submit(queued())


def test_an_unfinished_job_stands_in_its_owners_list(queue: Queue) -> None:
    """Versions that had no lists are followed by ones that have."""
    jobs = [submit(queue) for _ in range(2)]
    queue.records.client.delete("polyreel:jobs:alice")
    assert repaired(queue) == {}
    assert queue.records.client.zrange("polyreel:jobs:alice", 0, -1) == jobs


def test_a_record_that_cannot_be_read_keeps_no_other_from_being_repaired(queue: Queue) -> None:
    broken, lost = submit(queue), submit(queue)
    client = queue.records.client
    client.hdel(f"polyreel:job:{broken}", "model", "created_at")
    client.hset(f"polyreel:job:{broken}", "request", "[no JSON")
    client.zrem(f"polyreel:ready:{MODEL}", broken, lost)
    said = queue.leases.repair()
    assert said == {lost: "put back into the order", broken: "taken out of the list: it does not wait"}
    assert [one.job_id for _ in range(2) for one in claim(queue)] == [lost]
    assert queue.records.open_ids() == [broken, lost], "somebody may still mend it"


@pytest.mark.parametrize("claimable", [0, 1])
def test_a_newer_versions_record_is_left_alone(queue: Queue, claimable: int) -> None:
    client = queue.records.client
    job = submit(queue)
    client.hset(f"polyreel:job:{job}", mapping={"schema": SCHEMA + 1, "status": "dreaming", "claimable": claimable})
    client.zrem(f"polyreel:ready:{MODEL}", job)
    client.lrem(f"rq:queue:{MODEL}", 0, job)
    before = client.hgetall(f"polyreel:job:{job}")
    assert queue.leases.repair() == {}
    assert client.hgetall(f"polyreel:job:{job}") == before
    assert queue.records.open_ids() == [job]
    assert (client.zcard("polyreel:leases"), order(client)) == (0, [])


def test_an_entry_that_rq_has_lost_breaks_nothing(queue: Queue) -> None:
    """RQ's hash is for its tools; a job is run, handed back and ended without it."""
    client = queue.records.client
    job = submit(queue)
    client.delete(f"rq:job:{job}")
    claim(queue)
    run_out(client, job)
    assert reap(queue.leases) == {job: "queued"}
    [taken] = claim(queue)
    assert queue.records.advance(job, taken.fence, JobStatus.SUCCEEDED)
    assert client.keys(f"rq:*{job}*") == []
    assert repaired(queue) == {}


REQUEST_1 = (
    '{"model": "ltx-tiny", "prompts": [{"prompt": "A sunset over the ocean", "num_frames": 9}], "height": 64, '
    '"width": 96, "fps": 8.0, "num_inference_steps": 4, "guidance_scale": 3.0, "seed": 42, "outputs": [{"format": '
    '"gif", "fps": 8.0, "quality": "good"}], "negative_prompt": "", "clip_skip": null, "images": [], "loras": [], '
    '"embeddings": [], "closed_loop": false, "upscale": null, "improved_sampling_seed": null}'
)


def version_1(client: redis.Redis, number: int, **fields: str | int | float) -> str:
    """Write a job as version 1 of the records did, with RQ's entry in the one queue of then; return its id."""
    job_id = f"{number:08d}-2699-41c6-b2c5-3e60bdefadd1"
    created_at = redis_time(client) - 1000 + number
    record = {
        "id": job_id, "dialect": "modelslab", "owner": "alice", "request": REQUEST_1, "vendor": "{}",
        "output_keys": json.dumps([f"out/{job_id}/{job_id}.gif"]), "status": "queued", "progress": 0, "stage": "",
        "step": 0, "total_steps": 0, "attempts": 0, "worker": "", "created_at": created_at, "started_at": "0.0",
        "ended_at": "0.0", "timings": "{}", "receipt": "{}", "error_code": "", "error_message": "", "outputs": "[]",
        "number": 1795260823000 + number, "claimable": 1, "fence": 0, **fields,
    }  # fmt: skip
    client.hset(f"polyreel:job:{job_id}", mapping=record)
    client.set(f"polyreel:number:{record['number']}", job_id)
    client.hincrby("polyreel:counts", "submitted", 1)
    entry = {"origin": "polyreel", "status": "queued", "description": job_id, "timeout": 600, "data": "as RQ wrote it"}
    client.hset(f"rq:job:{job_id}", mapping=entry)
    client.sadd("rq:queues", "rq:queue:polyreel")
    if record["status"] in ("succeeded", "failed", "cancelled"):
        client.hincrby("polyreel:counts", str(record["status"]), 1)
        for key in (f"polyreel:job:{job_id}", f"polyreel:number:{record['number']}", f"rq:job:{job_id}"):
            client.expire(key, 600)
    else:
        client.zadd("polyreel:open", {job_id: created_at})
    if record["claimable"] == 1:
        client.rpush("rq:queue:polyreel", job_id)
    return job_id


def test_jobs_that_waited_in_version_1_are_run_first_and_in_their_order(queue: Queue) -> None:
    client = queue.records.client
    old = [version_1(client, 9 - number) for number in range(5)]
    new = submit(queue)
    assert [one.job_id for _ in range(3) for one in claim(queue)] == [new], "before the repair they are not seen"
    later = submit(queue)
    assert repaired(queue) == dict.fromkeys(old, "put back into the order")
    oldest_first = old[::-1]
    assert order(client) == [*oldest_first, later]
    assert (client.exists("rq:queue:polyreel"), client.smembers("rq:queues")) == (0, {f"rq:queue:{MODEL}"})
    assert {client.hget(f"rq:job:{job}", "origin") for job in old} == {MODEL}
    taken = take_next(queue)
    assert taken.job_id == oldest_first[0]
    assert queue.records.release(taken.job_id, taken.fence, counted=True)
    assert order(client)[0] == oldest_first[0]
    taken = take_next(queue)
    assert queue.records.advance(taken.job_id, taken.fence, JobStatus.SUCCEEDED, "one", progress=100)
    assert queue.cancel(oldest_first[1]) == "cancelled"
    assert_all_adds_up(client)


def test_a_job_that_ran_in_version_1_runs_again_when_its_worker_is_gone(queue: Queue) -> None:
    client = queue.records.client
    old = version_1(client, 1, status="running", claimable=0, fence=1, attempts=1, worker="one", progress=40)
    client.zadd("rq:wip:polyreel", {f"{old}:5a6b": redis_time(client) + 3600})
    assert repaired(queue) == {old: "given a lease"}
    assert client.zcard("rq:wip:polyreel") == 0
    run_out(client, old)
    assert reap(queue.leases) == {old: "queued"}
    taken = take_next(queue)
    assert (taken.job_id, taken.fence) == (old, 2)
    assert not queue.records.advance(old, 1, JobStatus.SUCCEEDED), "the one of version 1 was given up"
    assert_all_adds_up(client)


def test_a_job_of_version_1_whose_clock_ran_ahead_is_run_like_the_others(queue: Queue) -> None:
    client = queue.records.client
    job = version_1(client, 1, created_at=redis_time(client) + 7200)
    repaired(queue)
    assert [one.job_id for one in claim(queue)] == [job]


def test_finished_records_of_version_1_are_still_read(queue: Queue) -> None:
    output = Output("out/x/x.gif", "gif", "image/gif", 10, 64, 96, 9, 8.0, "0" * 64)
    job = version_1(
        queue.records.client, 7, status="succeeded", claimable=0, fence=1, ended_by="1", progress=100, attempts=1,
        outputs=json.dumps([{name: getattr(output, name) for name in output.__slots__}]), receipt='{"seed": 42}',
        started_at=1795260823.5, ended_at=1795260825.5, timings='{"load": 0.1}', worker="one", claim="86aac1",
    )  # fmt: skip
    assert repaired(queue) == {}
    stored = read(queue, job)
    assert (stored.number, stored.fence, stored.claimable) == (1795260823007, 1, False)
    assert stored.job.request == REQUEST
    assert (stored.job.status, stored.job.outputs, stored.job.receipt) == (JobStatus.SUCCEEDED, (output,), {"seed": 42})
    assert (stored.job.seconds_taken, stored.job.lane, stored.job.batch_key) == (2.0, "interactive", "")
    assert not queue.records.advance(job, 1, JobStatus.RUNNING)
    assert queue.cancel(job) == "succeeded"


def test_a_job_of_version_1_shares_a_call_with_nobody(queue: Queue) -> None:
    for number in range(3):
        version_1(queue.records.client, number)
    repaired(queue)
    assert len(claim(queue, batches={MODEL: [(10**9, 4)]})) == 1


def test_jobs_of_version_1_go_to_the_models_that_they_name(queue: Queue) -> None:
    wan = version_1(queue.records.client, 1, request=REQUEST_1.replace("ltx-tiny", "wan-tiny"))
    nobody_knows = version_1(queue.records.client, 2, request='{"no": "model"}')
    assert queue.leases.repair() == {wan: "put back into the order"}
    assert [one.job_id for one in claim(queue, model="wan-tiny")] == [wan]
    assert read(queue, wan).job.request == replace(REQUEST, model="wan-tiny")
    assert queue.records.open_ids() == [wan, nobody_knows]
