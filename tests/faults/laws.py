"""What must hold after every fault, of the clients, of the records and of everything that is left behind.

I1  every acknowledged job has ended in time
I2  states only move forward, and an end never changes: for the clients and in the record
I3  one result per job, whenever its link is asked
I4  every linked file is there, complete and playable
I5  nothing without a TTL is left but records and what is counted once; no half files under a result's name
I6  each job's webhook was taken once at least, and all its messages have one id
I7  the counters add up, and no list holds what is not there
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import av
import redis
from PIL import Image

from polyreel.job import MAX_ATTEMPTS, JobStatus
from polyreel.records import connect
from polyreel.signing import message_id
from polyreel.storage import connect_storage
from polyreel.webhooks import RECEIVERS, Webhooks
from tests.faults.asks import Kept
from tests.faults.clients import again
from tests.faults.parts import Gone, base_url, until
from tests.faults.stand import Stand
from tests.server.receivers import Receiver

#: Keys that live as long as the server: one each, or one per model, worker or owner.
_LASTING = (
    "polyreel:number", "polyreel:counts", "polyreel:series", "polyreel:seconds", "polyreel:rates", "polyreel:swaps",
    "polyreel:models", "polyreel:reaper", "polyreel:residents", "polyreel:fair:", "polyreel:durations",
    "polyreel:estimates", "polyreel:secret:", "polyreel:storage", "rq:queues", "rq:workers", "rq:finished:",
    "rq:failed:", "rq:canceled:",
)  # fmt: skip


class Watch:
    """Reads all unfinished records again and again, as a client with very good eyes would, and notes what moves back.

    Use as a context manager.
    """

    def __init__(self, stand: Stand) -> None:
        self.wrong: list[str] = []
        self.seen = 0
        self._client = connect(stand.url, patient=False)
        self._last: dict[str, tuple[int, int, int, str]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()
        self.look(list(self._last))
        self._client.close()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            try:
                self.look([str(job_id) for job_id in self._client.zrange("polyreel:open", 0, -1)])
            except redis.RedisError:  # it is away; what is there when it is back must not have moved back
                time.sleep(0.1)

    def look(self, ids: Sequence[str]) -> None:
        """Read records and compare them with what they were."""
        with self._client.pipeline(transaction=False) as pipeline:
            for job_id in ids:
                pipeline.hmget(f"polyreel:job:{job_id}", "status", "progress", "fence", "error_code")
            for job_id, said in zip(ids, pipeline.execute(), strict=True):
                if said[0] is None:
                    if job_id in self._last:
                        self.wrong.append(f"{job_id}: its record is gone")
                    continue
                self._compare(job_id, said)

    def _compare(self, job_id: str, said: list[Any]) -> None:
        now = (JobStatus(said[0]).rank, int(said[1]), int(said[2]), f"{said[0]} {said[3] or ''}")
        before = self._last.get(job_id, now)
        if any(later < earlier for later, earlier in zip(now[:3], before[:3], strict=True)):
            self.wrong.append(f"{job_id}: moved back from {before} to {now}")
        if before[0] == 5 and now != before:
            self.wrong.append(f"{job_id}: had ended as {before}, now {now}")
        self._last[job_id] = now
        self.seen += 1


def check(stand: Stand, kept: Sequence[Kept], *, deaths_allowed: bool = False) -> None:
    """Assert every law for what clients remember, and for the server as it is left.

    Args:
        deaths_allowed: a job may have failed because its workers died three times, as promised.
    """
    bases = [base_url(api) for api in stand.apis if api.is_running]
    again(bases, kept)
    for one in kept:
        what = f"{one.ask.dialect} {one.ask.name} (job {one.job_id or 'unknown'})"
        assert one.job_id, f"I1: {what} was never acknowledged, after {one.submits} submits; {one.wrong}"
        assert one.end, f"I1: {what} has not ended; its record: {stand.records.get(one.job_id)}"
        assert not one.wrong, f"{what} was told: {one.wrong}"
        assert one.seen == sorted(one.seen), f"I2: {what} saw {one.seen}"
        stored = stand.record(one.job_id)
        assert stored.job.attempts <= MAX_ATTEMPTS, f"{what} had {stored.job.attempts} attempts"
        assert one.end == stored.job.status, f"I2: {what} was told {one.end}, its record says {stored.job.status}"
        if one.end == "succeeded":
            _check_files(stand, one)
        else:
            assert deaths_allowed, f"{what} failed: {one.reason}"
            assert (stored.job.error_code, stored.job.attempts) == ("worker_died", MAX_ATTEMPTS), one.reason
    ids = Counter(one.job_id for one in kept)
    assert ids.most_common(1)[0][1] == 1, f"two clients have one job: {ids.most_common(3)}"
    check_at_rest(stand)


def _check_files(stand: Stand, kept: Kept) -> None:
    job = stand.record(kept.job_id).job
    storage = connect_storage((stand.state / "results").resolve().as_uri())
    assert job.outputs, f"I4: {kept.ask.name} succeeded without a file"
    for output in job.outputs:
        with storage.open(output.key) as file:
            content = file.read()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (output.bytes, output.sha256), output.key
        assert (output.num_frames, output.height, output.width) == _shape(content, output.format), output.key
    assert kept.sha256 == job.outputs[0].sha256, f"I3: {kept.ask.name} was given another file than its record names"


def _shape(content: bytes, format: str) -> tuple[int, int, int]:
    """Return frames, height and width of a file that plays to its end."""
    if format == "gif":
        with Image.open(io.BytesIO(content)) as image:
            frames = image.n_frames
            image.seek(frames - 1)
            return frames, image.height, image.width
    with av.open(io.BytesIO(content)) as container:
        decoded = list(container.decode(video=0))
        return len(decoded), decoded[0].height, decoded[0].width


def check_at_rest(stand: Stand) -> None:
    """Assert I5 and I7 of a server without unfinished jobs; what a dead worker left may take a moment to go."""

    def troubles() -> list[str]:
        client = stand.client
        found = []
        counts = {str(name): int(value) for name, value in client.hgetall("polyreel:counts").items()}
        ended = sum(counts.get(end, 0) for end in ("succeeded", "failed", "cancelled"))
        if counts.get("submitted", 0) != ended:
            found.append(f"I7: {counts.get('submitted', 0)} submitted, {ended} ended: {counts}")
        if client.zcard("polyreel:open"):
            found.append(f"I7: {client.zcard('polyreel:open')} are unfinished")
        if client.hgetall("polyreel:open:owners"):
            found.append(f"I7: owners have {client.hgetall('polyreel:open:owners')} unfinished")
        if client.zcard("polyreel:leases"):
            found.append(f"I7: leases: {client.zrange('polyreel:leases', 0, -1)}")
        found += [f"I6: {key} is not empty" for key in (RECEIVERS, f"{RECEIVERS}:leases") if client.exists(key)]
        for pattern in ("polyreel:ready:*", "rq:queue:*", "rq:wip:*", "rq:execution*"):
            found += [f"I7: {key} is not empty" for key in client.scan_iter(pattern, 1000)]
        for key in client.scan_iter("*", 1000):
            if client.ttl(key) == -1 and not str(key).startswith(_LASTING):
                found.append(f"I5: {key} never expires")
        return found

    try:
        until(lambda: not troubles(), "everything at rest", 15, every_s=0.2)
    except Gone:
        raise AssertionError("\n".join(troubles())) from None
    for path in (stand.state / "results" / "out").rglob("*"):
        assert path.is_dir() or path.suffix in (".gif", ".mp4") or path.name.endswith(".part"), f"I5: {path}"


def check_deliveries(stand: Stand, kept: Sequence[Kept], receiver: Receiver, timeout_s: float) -> None:
    """Assert I6 of those who asked to be told; what failed last may have to be tried again first."""
    told = [one for one in kept if one.ask.webhook]
    states = {one.job_id: "" for one in told}

    def all_are_delivered() -> bool:
        for job_id, state in states.items():
            if state != "delivered":
                states[job_id] = Webhooks(stand.client).deliveries(job_id).state
        return set(states.values()) == {"delivered"}

    try:
        until(all_are_delivered, "all webhooks are delivered", timeout_s, every_s=0.1)
    except Gone:
        left = {
            job_id: Webhooks(stand.client).deliveries(job_id)
            for job_id, state in states.items()
            if state != "delivered"
        }
        raise AssertionError(f"I6: not delivered: {left}") from None
    ids: dict[str, set[str]] = {}
    for got in receiver.received:
        ids.setdefault(got.path, set()).add(got.headers["webhook-id"])
    assert ids == {f"/hook/{one.ask.name}": {message_id(one.job_id)} for one in told}, "I6"


def record_count(stand: Stand) -> int:
    """Return how many jobs there are: one per request, however often it was sent."""
    return sum(1 for _ in stand.client.scan_iter("polyreel:job:*", 1000))
