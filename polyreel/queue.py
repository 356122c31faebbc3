"""The queue: RQ carries job ids to workers, the records say what is true of them.

RQ's part is plumbing: a job there is the name of a task and one id, as JSON. If its entry is lost (a crash between
two writes, a worker killed while it held the id) `Queue.reconcile` puts it back, because the record still says that
the job is open and that nobody has it.

Seam: one RQ queue for all models. Queues per model, their order and shared batches belong to the claim.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import redis
from rq import Queue as RQQueue
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from polyreel.job import MAX_ATTEMPTS, VideoJob
from polyreel.records import (
    BRIEF_TIMEOUTS,
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

#: How long a job must be seen unattended before it is put back, seconds. Longer than a live worker takes between
#: popping, claiming and telling of it in its next heartbeat, and than its clients need to reconnect after an outage;
#: with the heartbeat's own time to live, a killed worker's job runs again within 30 s.
WATCH_S = 8.0


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
        #: (job id, fence) of each unattended job to the time of our clock at which we first saw it so.
        self._unattended: dict[tuple[str, int], float] = {}
        self._watched_at = -WATCH_S
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

    def reconcile(self, now: float | None = None) -> list[str]:
        """Put every open job back into the queue that has been unattended for `WATCH_S` under our own eyes.

        Unattended is a job that nobody has and that is in no list (its worker died between popping and claiming, or
        the enqueue never happened), and one whose worker is dead or runs something else (it dropped the job because
        Redis was away). Time is only what this process watched without a gap, by its own clock: after an outage all
        heartbeats have run out, and the clocks of two machines may differ. Running it in several workers at once is
        harmless: a claim is given once.

        Args:
            now: this process's monotonic clock, seconds.

        Returns:
            The ids that were repaired.
        """
        now = time.monotonic() if now is None else now
        if now - self._watched_at > WATCH_S:
            self._unattended.clear()
        self._watched_at = now
        waiting = set(self._rq.get_job_ids())
        repaired: list[str] = []
        seen: dict[tuple[str, int], float] = {}
        for stored in self._open_jobs():
            if self._is_attended(stored, waiting):
                continue
            key = (stored.job.id, stored.fence)
            seen[key] = self._unattended.get(key, now)
            if now - seen[key] >= WATCH_S and self._put_back(stored):
                repaired.append(stored.job.id)
        self._unattended = seen
        return repaired

    def _open_jobs(self) -> Iterator[StoredJob]:
        for job_id in self.records.open_ids():
            try:
                stored = self.records.get(job_id)
            except (KeyError, TypeError, ValueError):
                continue  # another version of the server wrote it, and knows how to run it
            if stored is None:
                self.records.forget_open(job_id)
            else:
                yield stored

    def _is_attended(self, stored: StoredJob, waiting: set[str]) -> bool:
        if stored.claimable:
            return stored.job.id in waiting
        return self.records.has_job(stored.job.worker, stored.job.id)

    def _put_back(self, stored: StoredJob) -> bool:
        if not stored.claimable:
            return self.requeue(stored)
        self._replace_entry(stored.job.id)
        return True
