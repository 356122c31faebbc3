"""The queue: records, leases, webhooks and what admits jobs, over one Redis."""

from __future__ import annotations

from dataclasses import replace

import redis

from polyreel.batching import batch_key
from polyreel.job import VideoJob
from polyreel.leases import Leases
from polyreel.records import (
    BRIEF_TIMEOUTS,
    PATIENT_TIMEOUTS,
    Records,
    StoredJob,
    brief_retry,
    connect,
    patient_retry,
    redis_errors,
)
from polyreel.scheduling import Rule
from polyreel.terms import Terms
from polyreel.webhooks import Webhooks


def rq_connection(url: str, *, patient: bool) -> redis.Redis:
    """Return a client for RQ, which wants bytes."""
    if patient:
        return redis.Redis.from_url(url, retry=patient_retry(), **PATIENT_TIMEOUTS)
    return redis.Redis.from_url(url, retry=brief_retry(), **BRIEF_TIMEOUTS)


class Queue:
    """Submits jobs, and hands out what reads and changes them. All calls block: an async caller uses a thread.

    Args:
        url: of Redis.
        retention_s: how long finished records stay, seconds.
        max_open: unfinished jobs in all before `submit` refuses.
        max_open_of_owner: unfinished jobs of an account whose key names no number; None for no limit of its own.
        job_timeout_s: longest time that one attempt may run, seconds.
        lease_s: how long a claim holds without being renewed, seconds.
        rule: how a worker chooses between models.
        patient: True in a worker, False where somebody waits for the answer.
    """

    def __init__(
        self,
        url: str,
        *,
        retention_s: float,
        max_open: int,
        job_timeout_s: int,
        patient: bool,
        max_open_of_owner: int | None = None,
        lease_s: float = 20.0,
        rule: Rule | None = None,
    ) -> None:
        client = connect(url, patient=patient)
        self.records = Records(client, retention_s, lease_s)
        self.leases = Leases(client, retention_s=retention_s, lease_s=lease_s, rule=rule)
        self.webhooks = Webhooks(client)
        self.max_open = max_open
        self.max_open_of_owner = max_open_of_owner
        self.job_timeout_s = job_timeout_s

    def submit(self, job: VideoJob, terms: Terms | None = None) -> StoredJob:
        """Take a job in; when this returns, it is acknowledged and will run.

        Args:
            job: one that is `saved` on the way runs alone, since a call of several jobs is not saved.
            terms: its lane, whether it runs alone, its Idempotency-Key.

        Returns:
            The record; an earlier job's when its Idempotency-Key and request came before.

        Raises:
            TooManyJobs: the queue is full; `LimitReached`, for this account, or it may not submit so many so fast.
            KeyReused: the Idempotency-Key stands for another request.
            QueueUnavailable: Redis does not answer; a record that was written all the same is run, which costs
                a generation that nobody reads and loses nothing.
        """
        terms = terms or Terms()
        is_alone = terms.exact or job.saved
        job = replace(job, lane=terms.lane, batch_key="" if is_alone else batch_key(job.request))
        with redis_errors():
            return self.records.create(
                job,
                self.max_open,
                max_open_of_owner=self.max_open_of_owner,
                timeout_s=self.job_timeout_s,
                terms=terms,
            )

    def check(self, job: VideoJob, terms: Terms) -> None:
        """Raise what `submit` would raise now; write nothing, and promise nothing."""
        with redis_errors():
            self.records.check(job, self.max_open, max_open_of_owner=self.max_open_of_owner, terms=terms)

    def delete(self, job_id: str) -> bool:
        """As `Records.delete`; raises as `forget`."""
        return self.forget(job_id) is not None

    def forget(self, job_id: str) -> list[str] | None:
        """As `Records.forget`.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors():
            return self.records.forget(job_id)

    def cancel(self, job_id: str) -> str:
        """As `Records.cancel`.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors():
            return self.records.cancel(job_id)
