"""Follows jobs for clients that want to be told: one look at a job serves everybody who follows it in this process.

Nothing is queued: a follower that is slow, or comes late, gets the newest state, and the end is never passed over, as
it is the newest state for good.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from polyreel.errors import QueueUnavailable
from polyreel.estimates import Estimate
from polyreel.previews import Preview
from polyreel.records import StoredJob
from server.gate import budget

log = structlog.get_logger()

#: Pause between two looks at a job, seconds; while Redis is away, the longer one.
_LOOK_S, _AWAY_S = 0.25, 1.0

#: Pause for each job that is followed in this process, where that is longer, seconds: a look takes about 2 ms of the
#: process, so all of them together take a fifth of it at most, and up to a hundred jobs are looked at each second.
_EACH_S = 0.01

#: An estimate that alone has changed is told this seldom, seconds.
_ETA_S = 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """A job at one moment.

    Args:
        stored: its record.
        found: where it stands.
        preview: the newest picture of it, None while there is none.
    """

    stored: StoredJob
    found: Estimate
    preview: Preview | None

    def tells_more_than(self, other: Look) -> bool:
        """Return whether a follower is to hear of this at once; the estimate alone is not worth it."""
        return self._facts() != other._facts()

    def _facts(self) -> tuple[object, ...]:
        job, preview = self.stored.job, self.preview
        place = self.found.position if self.stored.claimable else None
        return (
            job.status,
            job.stage,
            job.step,
            job.total_steps,
            job.progress,
            job.attempts,
            place,
            preview and preview.step,
        )


#: Reads a job anew; None when its record is gone.
Reading = Callable[[], Awaitable[Look | None]]


class Watch:
    """What is known of one job, for all who follow it. Changes only on the event loop, so nothing is locked."""

    def __init__(self, read: Reading, pause_s: Callable[[], float]) -> None:
        self._read = read
        self._pause_s = pause_s
        self._changed = asyncio.Event()
        self._told_at = 0.0
        self.followers = 0
        self.version = 0
        self.latest: Look | None = None
        self.is_gone = False

    async def newer_than(self, version: int, timeout_s: float) -> bool:
        """Wait until there is a version after this one; False when there was none for so long."""
        if self.version > version:
            return True
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Look until the job has ended or its record is gone."""
        while not self.is_gone and not (self.latest and self.latest.stored.job.status.is_terminal):
            pause_s = self._pause_s()
            try:
                with budget():  # of this look
                    self._take(await self._read())
            except QueueUnavailable:
                pause_s = _AWAY_S
            except Exception as err:  # a record of a newer version; who follows it is not cut off for that
                log.warning("a job that is followed cannot be read", reason=repr(err))
                pause_s = _AWAY_S
            await asyncio.sleep(pause_s)

    def _take(self, look: Look | None) -> None:
        now, before = time.monotonic(), self.latest
        if look is None:
            self.is_gone = True
        elif before and not look.tells_more_than(before) and now - self._told_at < _ETA_S:
            return
        self.latest, self._told_at = look or before, now
        self.version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Watches:
    """All watches of this process, by job."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Watch, asyncio.Task[None]]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def pause_s(self) -> float:
        """Return how long each watch is to pause between two looks, seconds."""
        return max(_LOOK_S, _EACH_S * len(self))

    @asynccontextmanager
    async def following(self, job_id: str, read: Reading) -> AsyncIterator[Watch]:
        """Follow a job while inside; the first follower begins to look, the last one ends it.

        Args:
            read: asked on behalf of all, so it must not depend on who follows.
        """
        if job_id not in self._running:
            watch = Watch(read, self.pause_s)
            self._running[job_id] = (watch, asyncio.create_task(watch.run(), name=f"watch {job_id}"))
        watch, task = self._running[job_id]
        watch.followers += 1
        try:
            yield watch
        finally:
            watch.followers -= 1
            if watch.followers == 0:
                del self._running[job_id]
                task.cancel()
