"""A job as RQ knows it: a name and an id, for `rq info` and RQ's other tools. Workers read our records, never this."""

from __future__ import annotations

import redis
from rq.job import Job
from rq.job import JobStatus as RQStatus
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat

from polyreel.job import MAX_ATTEMPTS, VideoJob

#: The function that an entry names. Nobody imports or calls it: what a worker runs is not read from the entry.
GENERATE_TASK = "polyreel.generate"


def entry_fields(job: VideoJob, timeout_s: int, client: redis.Redis) -> list[str | bytes]:
    """Return the names and values of the hash that RQ would write for a job that waits in its model's queue.

    Args:
        client: of Redis; RQ wants one to make an entry, and nothing is sent.
    """
    entry = Job.create(
        GENERATE_TASK,
        args=[job.id],
        id=job.id,
        connection=client,
        serializer=JSONSerializer,
        origin=job.request.model,
        timeout=timeout_s,
        status=RQStatus.QUEUED,
        result_ttl=3600,
        failure_ttl=86400,
        description=job.id,
    )
    entry.enqueued_at = now()
    entry.retries_left = MAX_ATTEMPTS - 1
    fields: list[str | bytes] = []
    for name, value in entry.to_dict().items():
        # its status is text and an enum, whose str() is the name of the member
        fields += [name, value if isinstance(value, str | bytes) else str(value)]
    return fields


def iso_now() -> str:
    """Return the time of this machine as RQ writes it."""
    return utcformat(now())
