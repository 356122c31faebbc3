"""The queue: RQ carries job ids to workers, the records say what is true of them.

RQ's part is plumbing: a job there is the name of a task and one id, as JSON. If its entry is lost (a crash between
two writes, a worker killed while it held the id) `Queue.reconcile` puts it back, because the record still says that
the job is open and that nobody has it.

Seam: one RQ queue for all models. Queues per model, their order and shared batches belong to the claim.
"""

from __future__ import annotations

import contextlib
import time

import redis
from rq import Queue as RQQueue
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from polyreel.job import MAX_ATTEMPTS, VideoJob
from polyreel.records import (
    BRIEF_TIMEOUTS,
    HEARTBEAT_TTL_S,
    Records,
    StoredJob,
    brief_retry,
    connect,
    patient_retry,
    redis_errors,
)

QUEUE_NAME = "polyreel"

#: The one task that a worker runs; workers refuse any other name (RQ would import whatever it is told).
GENERATE_TASK = "polyreel.generate"

#: A job that was enqueued this recently may be between two Redis writes and is not missed yet, seconds.
_GRACE_S = 5.0


def rq_connection(url: str, *, patient: bool) -> redis.Redis:
    """Return a client for RQ, which wants bytes."""
    if patient:
        return redis.Redis.from_url(url, retry=patient_retry())
    return redis.Redis.from_url(url, retry=brief_retry(), **BRIEF_TIMEOUTS)


class Queue:
    """Submits jobs and repairs the queue. All calls block: an async caller uses a thread.

    Args:
        url: of Redis.
        retention_s: how long finished records stay, seconds.
        max_open: unfinished jobs in all before `submit` refuses.
        job_timeout_s: longest time that one attempt may run, seconds.
        patient: True in a worker, False where somebody waits for the answer.
    """

    def __init__(self, url: str, *, retention_s: float, max_open: int, job_timeout_s: int, patient: bool) -> None:
        self.records = Records(connect(url, patient=patient), retention_s)
        self.max_open = max_open
        self.job_timeout_s = job_timeout_s
        self._missed: set[str] = set()
        self._rq = RQQueue(QUEUE_NAME, connection=rq_connection(url, patient=patient), serializer=JSONSerializer)

    def submit(self, job: VideoJob) -> StoredJob:
        """Write the record and enqueue its id; when this returns, the job is acknowledged and will run.

        Raises:
            TooManyJobs: the queue is full.
            QueueUnavailable: Redis does not answer; a record that was written all the same is run, which costs
                a generation that nobody reads and loses nothing.
        """
        with redis_errors():
            stored = self.records.create(job, self.max_open)
            self._enqueue(job.id)
        return stored

    def _enqueue(self, job_id: str) -> None:
        entry = Job.create(
            GENERATE_TASK,
            args=[job_id],
            id=job_id,
            connection=self._rq.connection,
            serializer=JSONSerializer,
            origin=QUEUE_NAME,
            timeout=self.job_timeout_s,
            result_ttl=60,  # the record is the result; RQ's own entry is only plumbing
            failure_ttl=86400,
            description=job_id,
        )
        with contextlib.suppress(DuplicateJobError):
            # unique: one Lua step, so that a retried write whose reply was lost does not enqueue twice
            self._rq.enqueue_job(entry, unique=True)

    def requeue(self, stored: StoredJob) -> bool:
        """Take a job from the dead worker that has it and enqueue it again, or fail it after `MAX_ATTEMPTS`.

        Args:
            stored: as just read; a job that moved on since is left alone.

        Returns:
            True when it waits for a worker again.
        """
        if stored.job.attempts >= MAX_ATTEMPTS:
            self.records.give_up(stored)
            return False
        if not self.records.release(stored.job.id, stored.fence, counted=True):
            return False
        self._replace_entry(stored.job.id)
        return True

    def _replace_entry(self, job_id: str) -> None:
        with contextlib.suppress(NoSuchJobError):
            Job.fetch(job_id, connection=self._rq.connection, serializer=JSONSerializer).delete()
        self._enqueue(job_id)

    def _is_abandoned(self, stored: StoredJob, now: float) -> bool:
        """Return whether the worker that claimed a job is dead, or has long stopped running it."""
        worker = stored.job.worker
        if not self.records.is_alive(worker):
            return True
        # A claim is newer than the heartbeat that tells of it.
        return now - stored.job.started_at > HEARTBEAT_TTL_S and not self.records.has_job(worker, stored.job.id)

    def reconcile(self, now: float | None = None) -> list[str]:
        """Put every open job that nobody has and that is in no list back into the queue.

        Covers a worker that died with the job (its heartbeat is gone) or dropped it because Redis was away, an id
        popped by a worker that died before it claimed, and a record whose enqueue never happened (the last two must
        be missing twice in a row: a live worker may be between popping and claiming). Running it in several workers
        at once is harmless: a claim is given once.

        Returns:
            The ids that were repaired.
        """
        now = time.time() if now is None else now
        waiting = set(self._rq.get_job_ids())
        missed_before, self._missed = self._missed, set()
        repaired = []
        for job_id in self.records.open_ids():
            try:
                stored = self.records.get(job_id)
            except (KeyError, TypeError, ValueError):
                continue  # another version of the server wrote it, and knows how to run it
            if stored is None:
                self.records.forget_open(job_id)
            elif stored.claimable:
                if job_id in waiting or now - stored.job.created_at <= _GRACE_S:
                    continue
                if job_id not in missed_before:
                    self._missed.add(job_id)
                    continue
                self._replace_entry(job_id)
                repaired.append(job_id)
            elif self._is_abandoned(stored, now) and self.requeue(stored):
                repaired.append(job_id)
        return repaired
