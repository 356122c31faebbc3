"""For dialects that hold a request until the video is there: wait for the end, or say why it did not come.

Clients that wait in silence are the same everywhere: some go away, and one of them (`@huggingface/inference`) sends a
request that was answered 503 again at once, without a pause and without an end.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from polyreel.errors import GenerationFailed, QueueUnavailable, StillRunning
from polyreel.job import JobStatus, VideoJob
from polyreel.records import WORKER_PREFIX, StoredJob
from server.services import Services

#: Every 503 is held this long, so that a client without a pause of its own does no harm, seconds.
HOLD_S = 1.0

#: How often a waiting route asks whether its client is still there, seconds.
_LOOK_S = 1.0

#: How long Redis may be away before a waiting client is told, seconds: a restart must not cost it the video.
_PATIENCE_S = 30.0


class JobFailed(GenerationFailed):
    """Raised when the job that a client waits for has failed or was cancelled; `reason` is the record's code."""

    def __init__(self, job: VideoJob) -> None:
        super().__init__(job.error_message or f"The job was {job.status}.")
        self.job_id = job.id
        self.reason = job.error_code or str(job.status)


async def wait_for_video(
    shared: Services, request: Request, stored: StoredJob, owner: str, timeout_s: float
) -> StoredJob:
    """Return the record once its job has succeeded.

    Args:
        request: whose client waits; its body has been read.
        timeout_s: longest wait, seconds; an end that is already there is told whatever the value.

    Raises:
        JobFailed: the job has ended otherwise.
        StillRunning: the time is up or the client has gone; the job goes on.
        QueueUnavailable: Redis was away for longer than a restart takes.
    """
    deadline = time.monotonic() + timeout_s
    answered = time.monotonic()
    while not stored.job.status.is_terminal:
        now = time.monotonic()
        if now >= deadline or await request.is_disconnected():
            raise StillRunning(f"The video was not ready within {timeout_s:g} seconds; its job goes on.", stored.job.id)
        try:
            stored = await shared.wait(stored.job.id, owner, min(deadline - now, _LOOK_S))
            answered = time.monotonic()
        except QueueUnavailable:
            if time.monotonic() - answered > _PATIENCE_S:
                raise
            await asyncio.sleep(_LOOK_S)
    if stored.job.status is not JobStatus.SUCCEEDED:
        raise JobFailed(stored.job)
    return stored


@asynccontextmanager
async def held_refusals() -> AsyncIterator[None]:
    """Hold the 503 of an unreachable queue for `HOLD_S`."""
    started = time.monotonic()
    try:
        yield
    except QueueUnavailable:
        await asyncio.sleep(max(0.0, started + HOLD_S - time.monotonic()))  # a queue that hangs has held it already
        raise


async def compute_type(shared: Services, job: VideoJob) -> str:
    """Return "cpu" or "gpu" for the worker that ran `job`, "" when it has gone since."""
    try:
        async with shared.gate.asking():
            said = await shared.reader.get(f"{WORKER_PREFIX}{job.worker}")
    except QueueUnavailable:
        return ""  # an unanswered detail is no reason to withhold the video
    if not said:
        return ""
    return "cpu" if json.loads(said).get("device") == "cpu" else "gpu"


async def is_loaded(shared: Services, model: str) -> bool:
    """Return whether a live worker has the pipeline of this catalogue entry in memory."""
    for about in await shared.workers():
        loaded = about.get("loaded")
        if isinstance(loaded, list) and model in loaded:
            return True
    return False
