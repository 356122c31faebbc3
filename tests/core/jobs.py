"""What the tests of the queue share: a small request, a queue over a real Valkey, lost replies, a count of it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import redis
from redis.connection import UnixDomainSocketConnection

from polyreel.job import VideoJob, new_job
from polyreel.leases import Claim, Leases, Wishes
from polyreel.queue import Queue
from polyreel.records import Records, StoredJob, patient_retry
from polyreel.request import OutputSpec, PromptSpan, VideoRequest

MODEL = "ltx-tiny"

REQUEST = VideoRequest(
    model=MODEL,
    prompts=(PromptSpan("A sunset over the ocean", 9),),
    height=64,
    width=96,
    fps=8.0,
    num_inference_steps=4,
    guidance_scale=3.0,
    seed=42,
    outputs=(OutputSpec("gif", 8.0),),
)

#: A model whose jobs share a call in fours at every size.
BATCHES = {MODEL: [(10**12, 4)]}


def queued(request: VideoRequest = REQUEST, **fields: object) -> VideoJob:
    """Return a new job of alice's, submitted in ModelsLab's words."""
    extensions = tuple(output.format for output in request.outputs)
    return replace(new_job(request, dialect="modelslab", owner="alice", extensions=extensions), **fields)


def of(model: str, **fields: object) -> VideoJob:
    """Return a new job of a model."""
    return queued(replace(REQUEST, model=model), **fields)


def open_queue(url: str, **changes: object) -> Queue:
    """Return a queue with leases long enough to stay out of the way; keyword arguments replace its own."""
    return Queue(url, **{"retention_s": 60, "max_open": 1000, "job_timeout_s": 600, "patient": False, **changes})


def claim(queue: Queue, worker: str = "one", model: str = MODEL, **wishes: object) -> list[Claim]:
    """Claim as a worker does that serves one model."""
    return queue.leases.claim(worker, Wishes([model], **wishes))


def take(queue: Queue, worker: str = "one", **fields: object) -> Claim:
    """Submit a job and claim it; nothing else may wait."""
    job = queue.records.create(queued(**fields), max_open=1000).job
    [claimed] = claim(queue, worker)
    assert claimed.job_id == job.id
    return claimed


def read(queue: Queue, job_id: str) -> StoredJob:
    """Return a record that must be there."""
    stored = queue.records.get(job_id)
    assert stored is not None
    return stored


def order(client: redis.Redis, model: str = MODEL) -> list[str]:
    """Return the ids that wait, in their order."""
    return client.zrange(f"polyreel:ready:{model}", 0, -1)


def redis_time(client: redis.Redis) -> float:
    """Return the seconds of Redis' clock."""
    seconds, microseconds = client.time()
    return seconds + microseconds / 1e6


def run_out(client: redis.Redis, *job_ids: str) -> None:
    """Let leases run out a second ago."""
    client.zadd("polyreel:leases", dict.fromkeys(job_ids, redis_time(client) - 1), xx=True)


def reap(leases: Leases) -> dict[str, str]:
    """Reap as one does that has reaped all the time, so that nothing is held."""
    leases.client.hset("polyreel:reaper", mapping={"last": redis_time(leases.client), "hold": 0})
    return leases.reap()


class LosesReplies(UnixDomainSocketConnection):
    """A connection that breaks after Redis has done what it was asked, as often as `to_lose` says."""

    to_lose = 0

    def read_response(self, *args: object, **kwargs: object) -> object:
        reply = super().read_response(*args, **kwargs)
        if LosesReplies.to_lose > 0:
            LosesReplies.to_lose -= 1
            self.disconnect()
            raise redis.ConnectionError("lost")
        return reply


@contextmanager
def losing_replies(url: str, lease_s: float = 20.0) -> Iterator[Queue]:
    """Give a queue whose client repeats a call, as a worker's does when Redis restarts; its scripts are loaded.

    `LosesReplies.to_lose = 1` loses the next reply.
    """
    pool = redis.ConnectionPool(
        connection_class=LosesReplies, path=url.removeprefix("unix://"), decode_responses=True, retry=patient_retry()
    )
    with redis.Redis.from_pool(pool) as client:
        queue = open_queue(url, lease_s=lease_s)
        queue.records = Records(client, 60, lease_s)
        queue.leases = Leases(client, retention_s=60, lease_s=lease_s)
        for part in (queue.records, queue.leases):
            for script in vars(part).values():
                if hasattr(script, "sha"):
                    client.script_load(script.script)
        try:
            yield queue
        finally:
            LosesReplies.to_lose = 0


def assert_all_adds_up(client: redis.Redis) -> None:
    """Count everything anew from the records and compare.

    A job is in exactly one of its model's order, the leases, and the ended; RQ's list shows the order and RQ's registry
    the leases; the open set, the owners' counts and the counters agree; nobody has had more than three attempts; every
    key of an ended job expires.
    """
    records = {key.removeprefix("polyreel:job:"): client.hgetall(key) for key in client.scan_iter("polyreel:job:*")}
    ended = {job_id for job_id, r in records.items() if r["status"] in ("succeeded", "failed", "cancelled")}
    unfinished = {job_id: r for job_id, r in records.items() if job_id not in ended}
    leases = set(client.zrange("polyreel:leases", 0, -1))
    waiting: dict[str, list[str]] = {}
    listed: dict[str, list[str]] = {}
    started: list[str] = []
    for model in {r["model"] for r in unfinished.values()} | set(client.smembers("polyreel:models")):
        waiting[model] = order(client, model)
        listed[model] = client.lrange(f"rq:queue:{model}", 0, -1)
        started += client.zrange(f"rq:wip:{model}", 0, -1)
    everyone = [*(job_id for ids in waiting.values() for job_id in ids), *leases, *ended]
    assert Counter(everyone) == Counter(records.keys()), "each job in exactly one place"
    for job_id, r in unfinished.items():
        assert (job_id in waiting[r["model"]]) is (r["claimable"] == "1")
        assert int(r["attempts"]) <= 3
        assert client.ttl(f"polyreel:job:{job_id}") == -1
    assert {model: sorted(ids) for model, ids in listed.items()} == {m: sorted(ids) for m, ids in waiting.items()}
    assert sorted(started) == sorted(f"{job_id}:{records[job_id]['execution']}" for job_id in leases)
    assert set(client.zrange("polyreel:open", 0, -1)) == set(unfinished)
    owners = Counter(r["owner"] for r in unfinished.values())
    assert {name: int(n) for name, n in client.hgetall("polyreel:open:owners").items()} == owners
    accounts = Counter(r.get("account") or r["owner"] for r in unfinished.values())
    assert {name: int(n) for name, n in client.hgetall("polyreel:open:accounts").items()} == accounts
    reserved: Counter[str] = Counter()
    for r in unfinished.values():
        reserved[r.get("account") or r["owner"]] += int(r.get("expected_ms", 0))
    assert {name: int(n) for name, n in client.hgetall("polyreel:open:ms").items()} == +reserved
    counts = {name: int(n) for name, n in client.hgetall("polyreel:counts").items()}
    ends = Counter(records[job_id]["status"] for job_id in ended)
    assert counts.get("submitted", 0) == len(records)
    assert {name: counts.get(name, 0) for name in ("succeeded", "failed", "cancelled")} == {
        name: ends[name] for name in ("succeeded", "failed", "cancelled")
    }
    for job_id in ended:
        for key in client.scan_iter(f"*{job_id}*"):
            assert client.ttl(key) > 0, f"{key} of an ended job never expires"
        assert client.ttl(f"polyreel:number:{records[job_id]['number']}") > 0
