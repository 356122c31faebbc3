"""For dialects that hold a request until the video is there: wait for the end, or say why it did not come.

Clients that wait in silence are the same everywhere: some go away, and one of them (`@huggingface/inference`) sends a
request that was answered 503 again at once, without a pause and without an end.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import Request
from starlette.requests import ClientDisconnect

from polyreel.errors import ContentRefused, GenerationFailed, InvalidRequest, QueueUnavailable, StillRunning
from polyreel.job import JobStatus, VideoJob
from polyreel.records import WORKER_PREFIX, StoredJob
from server.gate import budget
from server.services import Services
from server.waiters import Waiter

log = structlog.get_logger()

#: Every 503 is held this long, so that a client without a pause of its own does no harm, seconds.
HOLD_S = 1.0

#: How often a waiting route asks whether its client is still there, seconds.
_LOOK_S = 1.0

#: How long Redis may be away before a waiting client is told, seconds: a restart must not cost it the video.
_PATIENCE_S = 30.0


class JobFailed(GenerationFailed):
    """Raised when the job that a client waits for has failed or was cancelled; `reason` is the record's code."""

    def __init__(self, job: VideoJob) -> None:
        super().__init__(job.why_not_made)
        self.job_id = job.id
        self.reason = job.error_code or str(job.status)


class ServerStopping(QueueUnavailable):
    """Raised to a client that waits when this process is told to stop; the job `job_id` goes on."""

    code = "server_stopping"

    def __init__(self, job_id: str) -> None:
        super().__init__("The server is being restarted; send the request again in a few seconds. Its job goes on.")
        self.job_id = job_id


async def wait_for_video(
    shared: Services,
    request: Request,
    stored: StoredJob,
    owner: str,
    timeout_s: float,
    *,
    since: float | None = None,
    cancel_when_client_leaves: bool,
    waiter: Waiter | None = None,
) -> StoredJob:
    """Return the record once its job has succeeded.

    Args:
        request: whose client waits; its body has been read.
        timeout_s: longest wait, seconds; an end that is already there is told whatever the value.
        since: when the request came, on the monotonic clock: fetching its picture is part of the wait.
            None is now.
        cancel_when_client_leaves: end the job when its client hangs up and nobody else waits for it.
        waiter: who is counted as waiting; made here when it is not yet.

    Raises:
        JobFailed: the job has ended otherwise; `ContentRefused` where the content policy refused its video.
        StillRunning: the time is up; the job goes on.
        ServerStopping: this process is told to stop; the job goes on.
        QueueUnavailable: Redis was away for longer than a restart takes; the job goes on.
        ClientDisconnect: there is nobody to answer any more.
    """
    job_id = stored.job.id
    waiter = waiter or Waiter(shared.waiters, job_id)
    deadline = (time.monotonic() if since is None else since) + timeout_s
    answered = time.monotonic()
    while not stored.job.status.is_terminal:
        now = time.monotonic()
        if shared.stopping.is_set():
            await shared.waiters.promise(job_id)
            raise ServerStopping(job_id)
        if await request.is_disconnected():
            await _client_left(waiter, cancel_when_client_leaves)
            raise ClientDisconnect
        if now >= deadline:
            await shared.waiters.promise(job_id)
            raise StillRunning(f"The video was not ready within {timeout_s:g} seconds; its job goes on.", job_id)
        try:
            with budget():  # of this look; the request itself may wait for minutes
                await waiter.stay()
                stored = await shared.wait(job_id, owner, min(deadline - now, _LOOK_S))
            answered = time.monotonic()
        except QueueUnavailable:
            if time.monotonic() - answered > _PATIENCE_S:
                raise
            await asyncio.sleep(_LOOK_S)
    if stored.job.error_code == ContentRefused.code:  # the client can mend it, which a failure of ours does not say
        raise ContentRefused(stored.job.why_not_made)
    if stored.job.status is not JobStatus.SUCCEEDED:
        raise JobFailed(stored.job)
    return stored


def asked_wait_s(request: Request, header: str, most_s: float) -> float:
    """Return how long a client asks to be held in a header, seconds: `most_s` at most, and where it does not ask.

    Raises:
        InvalidRequest: not a number of seconds.
    """
    asked = request.headers.get(header)
    if asked is None:
        return most_s
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        # What came is not repeated: a header may hold anything, a key that stands in the wrong one too.
        raise InvalidRequest(f"{header} must be a number of seconds, 0 or more", header)
    return min(seconds, most_s)


async def _client_left(waiter: Waiter, cancel: bool) -> None:
    """End the job of a client that has hung up, if it is to be and nobody else waits for it."""
    said = "kept"
    if cancel:
        try:
            with budget():
                said = await waiter.leave()
        except QueueUnavailable:
            said = "kept: the queue does not answer"
    log.info("client hung up", job=waiter.job_id, result=said)


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
