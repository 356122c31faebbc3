"""Counts who waits for a job, over all API processes, so that a job whose clients have all gone can be cancelled.

    polyreel:waiting:{id}   sorted set of waiters by the time until which they count, on Redis' clock

A waiter says again and again that it is there; one whose process was killed counts a little longer and is then
forgotten, with nobody cancelling its job. A *promise* (the client was told to come back) is a waiter that stays.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field

import redis

from polyreel.errors import QueueUnavailable
from polyreel.records import ending_terms
from polyreel.scripts import arguments, script
from server.gate import Gate

#: How long a waiter counts, and how often it says that it is there, seconds. The first is longer than one can have been
#: silent who is still patient with a Redis that was away (`server.synchronous`).
_COUNTS_S, _AGAIN_S = 60.0, 10.0

#: What `stay` says of a job that was cancelled because all who waited for it had gone; not of one that its owner ended.
LEFT = "left"


class Waiters:
    """Speaks to Redis for all waiters of one process.

    Args:
        retention_s: how long a finished record stays, and a promise, seconds.
    """

    def __init__(self, client: redis.Redis, gate: Gate, retention_s: float) -> None:
        self._gate = gate
        self._retention_s = max(1, int(retention_s))
        self._stay = script(client, "stay")
        self._leave = script(client, "leave")

    async def stay(self, job_id: str, name: str, for_s: float) -> str:
        """Let a waiter count for `for_s` seconds from now.

        Returns:
            The job's status, "" when there is no such job, or `LEFT`.
        """
        terms = {"id": job_id, "waiter": name, "for_s": for_s}
        return str(await self._gate.in_thread(self._stay, args=arguments(terms)))

    async def promise(self, job_id: str) -> None:
        """Keep a job from being cancelled by `leave`: a client was told that it goes on."""
        with suppress(QueueUnavailable):  # the client was told so all the same; who else waits for it is still counted
            await self.stay(job_id, "promise", self._retention_s)

    async def leave(self, job_id: str, name: str) -> str:
        """Cancel a job unless somebody else waits for it; return "awaited", or what `Records.cancel` says."""
        terms = {"id": job_id, "waiter": name, **ending_terms(self._retention_s, "")}
        return str(await self._gate.in_thread(self._leave, args=arguments(terms)))


@dataclass
class Waiter:
    """One client that waits for one job; its calls raise `QueueUnavailable` where they ask Redis."""

    waiters: Waiters
    job_id: str
    _name: str = field(default_factory=lambda: uuid.uuid4().hex)
    _said_at: float | None = None

    async def stay(self) -> bool:
        """Say that this client waits, when it is time to say so.

        Returns:
            False when this came too late: all who waited before had gone, and the job was cancelled for that.
        """
        now = time.monotonic()
        if self._said_at is not None and now - self._said_at < _AGAIN_S:
            return True
        said = await self.waiters.stay(self.job_id, self._name, _COUNTS_S)
        self._said_at = now
        return said != LEFT

    async def leave(self) -> str:
        """Cancel the job, unless somebody else waits for it or it cannot be cancelled any more."""
        return await self.waiters.leave(self.job_id, self._name)
