"""Remembers which job made the video of a request, so that the same request again is answered without a new run.

    polyreel:cache:{digest}      the job id; "" while the first of several identical requests submits it
    polyreel:promised:{digest}   the job id of a request that was told to come back for its video

A digest covers the owner, so nobody is answered with somebody else's video, and the checkpoint, so a changed
catalogue is not answered from the old one. Only digests are kept here: prompts stay in the job's own record.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from polyreel.errors import QueueUnavailable, UnknownJob
from polyreel.job import JobStatus
from polyreel.metrics import CACHE_HITS
from polyreel.records import StoredJob
from polyreel.request import VideoRequest
from server.services import Services
from server.storage_watch import for_clients

#: How long a submit may take before another request with the same digest submits for itself, whole seconds.
_RESERVED_S = 10


def digest(shared: Services, owner: str, request: VideoRequest, *, is_seeded: bool, is_exact: bool = False) -> str:
    """Return what two requests have in common when one video answers both.

    Args:
        is_seeded: False when the client gave no seed, so that the drawn one makes no difference.
        is_exact: True when a video from a shared pipeline call will not do.
    """
    entry = shared.catalogue[request.model]
    entries = [entry, shared.catalogue[entry.i2v]] if request.images and entry.i2v else [entry]
    parts: dict[str, object] = {
        "owner": owner,
        "request": request.to_dict() | ({} if is_seeded else {"seed": None}),  # pictures stand there by their content
        "model": [[entry.family, entry.checkpoint, entry.revision, entry.dtype] for entry in entries],
    }
    if is_exact:
        parts["exact"] = True
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ResultCache:
    """The remembered jobs of one owner."""

    shared: Services
    owner: str

    async def get_or_submit(self, key: str, submit: Callable[[], Awaitable[StoredJob]]) -> StoredJob:
        """Return the job that made or is making the video of this digest; the first caller submits it.

        A job that has failed, or whose file is gone, is forgotten and submitted anew.
        """
        name = f"polyreel:cache:{key}"
        while True:
            job_id = await self._job_id(name)
            if job_id:
                stored = await self._usable(job_id)
                if stored is not None:
                    with suppress(QueueUnavailable):  # a video is worth more than its count
                        await self.shared.gate.in_thread(self.shared.queue.records.count, CACHE_HITS)
                    return stored
                # Two callers may both come here; then both submit, which costs a run and harms nobody.
                async with self.shared.gate.asking():
                    await self.shared.reader.delete(name)
            async with self.shared.gate.asking():
                mine = await self.shared.reader.set(name, "", nx=True, ex=_RESERVED_S)
            if mine:
                return await self._submit(name, submit)
            await asyncio.sleep(0.05)

    async def _submit(self, name: str, submit: Callable[[], Awaitable[StoredJob]]) -> StoredJob:
        try:
            stored = await submit()
        except Exception:
            with suppress(QueueUnavailable):  # then it runs out by itself
                async with self.shared.gate.asking():
                    await self.shared.reader.delete(name)
            raise
        await self._keep(name, stored)
        return stored

    async def promise(self, key: str, stored: StoredJob) -> None:
        """Remember a job for the client that was told to send the same request again."""
        await self._keep(f"polyreel:promised:{key}", stored)
        await self.shared.waiters.promise(stored.job.id)

    async def promised(self, key: str) -> StoredJob | None:
        """Return the job of a promise that was not yet kept; also a failed one, so that the client learns why."""
        job_id = await self._job_id(f"polyreel:promised:{key}")
        return await self._get(job_id) if job_id else None

    async def forget_promise(self, key: str) -> None:
        """The client has had its answer."""
        with suppress(QueueUnavailable):  # it would be answered with the same video once more
            async with self.shared.gate.asking():
                await self.shared.reader.delete(f"polyreel:promised:{key}")

    async def _job_id(self, name: str) -> str:
        async with self.shared.gate.asking():
            return str(await self.shared.reader.get(name) or "")

    async def _keep(self, name: str, stored: StoredJob) -> None:
        # The job is acknowledged already: that it is not remembered must not turn into a refusal.
        with suppress(QueueUnavailable):
            async with self.shared.gate.asking():
                # The record lives this long after its end, so an entry never outlives it.
                await self.shared.reader.set(name, stored.job.id, ex=max(1, int(self.shared.settings.retention_s)))

    async def _get(self, job_id: str) -> StoredJob | None:
        try:
            return await self.shared.get(job_id, self.owner)
        except UnknownJob:
            return None

    async def _usable(self, job_id: str) -> StoredJob | None:
        stored = await self._get(job_id)
        if stored is None or not stored.job.status.is_terminal:
            return stored
        if stored.job.status is not JobStatus.SUCCEEDED:
            return None
        with for_clients():
            sizes = [await run_in_threadpool(self.shared.storage.size, output.key) for output in stored.job.outputs]
        return None if None in sizes else stored
