"""A server that finds what an older version left, or a newer one."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import replace
from typing import Any

import httpx2

from polyreel.job import SCHEMA, JobStatus
from tests.conftest import KEY
from tests.core.jobs import REQUEST, queued
from tests.faults.asks import Ask
from tests.faults.clients import run_all
from tests.faults.laws import check, check_at_rest
from tests.faults.parts import base_url, until
from tests.faults.stand import Stand

#: The records of version 1 (release 0.2): one queue for all models, RQ's entries, no lanes, no leases, no schema.
OLD = {
    "dialect": "modelslab", "owner": "alice", "vendor": "{}", "progress": "0", "stage": "", "step": "0",
    "total_steps": "0", "attempts": "0", "worker": "", "started_at": "0.0", "ended_at": "0.0", "timings": "{}",
    "receipt": "{}", "error_code": "", "error_message": "", "outputs": "[]", "claimable": "1", "fence": "0",
}  # fmt: skip


def write_old(stand: Stand, number: int, **fields: str) -> str:
    """Write a record as version 1 did; return its id."""
    job_id = str(uuid.uuid4())
    request = REQUEST.to_dict() | {"model": "first", "prompts": [{"prompt": f"clip old-{number}", "num_frames": 2}]}
    record = OLD | {
        "id": job_id,
        "status": "queued",
        "request": json.dumps(request),
        "output_keys": json.dumps([f"out/{job_id}/{job_id}.gif"]),
        "created_at": json.dumps(time.time()),
        "number": str(number),
        **fields,
    }
    stand.client.hset(f"polyreel:job:{job_id}", mapping=record)
    stand.client.set(f"polyreel:number:{number}", job_id)
    stand.client.hincrby("polyreel:counts", "submitted", 1)
    if record["status"] == "succeeded":
        stand.client.hincrby("polyreel:counts", "succeeded", 1)
        stand.client.expire(f"polyreel:job:{job_id}", 3600)
        stand.client.expire(f"polyreel:number:{number}", 3600)
    else:
        stand.client.zadd("polyreel:open", {job_id: time.time()})
        stand.client.rpush("rq:queue:polyreel", job_id)
    return job_id


def fetch(stand: Stand, number: int) -> dict[str, Any]:
    url = f"{base_url(stand.apis[0])}/api/v6/video/fetch/{number}"
    answer = httpx2.post(url, json={"key": KEY}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_an_older_version_had_finished_is_still_served_and_what_waited_or_ran_is_run(whole: Stand) -> None:
    content = b"GIF89a of an older version"
    done = write_old(whole, 1001, status="succeeded", progress="100", started_at="1.0", ended_at=f"{time.time()}")
    file = whole.state / "results" / "out" / done / f"{done}.gif"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    output = {
        "key": f"out/{done}/{done}.gif", "format": "gif", "media_type": "image/gif", "bytes": len(content),
        "height": 64, "width": 96, "num_frames": 2, "fps": 8.0, "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    whole.client.hset(f"polyreel:job:{done}", "outputs", json.dumps([output]))
    waited = write_old(whole, 1002)
    ran = write_old(
        whole, 1003, status="running", claimable="0", fence="1", attempts="1", worker="gone", started_at="1.0"
    )
    said = fetch(whole, 1001)
    assert said["status"] == "success"
    assert httpx2.get(said["output"][0]).content == content
    assert fetch(whole, 1002)["status"] == "processing"
    # A worker looks for what is to be repaired when it starts.
    whole.client.delete("polyreel:repaired")
    whole.workers[0].kill()
    whole.start()
    for number, job_id, attempts in ((1002, waited, 1), (1003, ran, 2)):
        until(lambda number=number: fetch(whole, number)["status"] == "success", f"{number} has ended")
        job = whole.record(job_id).job
        assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, attempts)
        assert whole.times_begun(job.request.prompts[0].prompt) == 1
        link = fetch(whole, number)["output"][0]
        assert hashlib.sha256(httpx2.get(link).content).hexdigest() == job.outputs[0].sha256
    assert whole.client.llen("rq:queue:polyreel") == 0
    check_at_rest(whole)


def test_jobs_of_a_newer_version_are_left_alone_and_do_not_hold_up_others(whole: Stand) -> None:
    # A submit of ours made newer by hand: what a newer version will write, nobody knows.
    for worker in whole.workers:
        assert worker.stop() == 0
    newer = whole.queue.submit(queued(replace(REQUEST, model="first"))).job
    request = json.dumps(newer.request.to_dict() | {"camera_path": "orbit"})
    whole.client.hset(f"polyreel:job:{newer.id}", mapping={"schema": SCHEMA + 1, "request": request})
    whole.start()
    kept = run_all(whole.bases, [Ask("beside-newer", "modelslab")])
    left = whole.client.hmget(f"polyreel:job:{newer.id}", "status", "claimable", "fence", "request")
    assert left == ["queued", "1", "0", request]
    assert whole.queue.cancel(newer.id) == "cancelled"
    check(whole, kept)
