"""Finds or starts the job of a request, waits for it, and answers with its file."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from polyreel.keys import Caller
from polyreel.records import StoredJob
from polyreel.request import VideoRequest
from polyreel.terms import Terms
from server.dialects.huggingface.errors import ModelLoading
from server.dialects.huggingface.request import SCALE_UP_TIMEOUT, WORDS, Body, may_use_cache, wants_to_wait
from server.dialects.huggingface.settings import HuggingFaceSettings, settings_of
from server.pictures import Picture
from server.result_cache import ResultCache, digest
from server.services import services
from server.synchronous import HOLD_S, JobFailed, asked_wait_s, compute_type, is_loaded, wait_for_video
from server.waiters import Waiter


@dataclass(frozen=True)
class Asked:
    """One request, read and translated.

    Args:
        name: of the model, as the client calls it.
        wire: the body; an empty one where the body is a picture.
        pictures: what `video.images` names.
        came_at: on the monotonic clock.
    """

    name: str
    wire: Body
    video: VideoRequest
    pictures: tuple[Picture, ...]
    terms: Terms
    came_at: float


async def run(request: Request, caller: Caller, asked: Asked) -> Response:
    """Answer with the video.

    While the model loads and the client is not to wait, the job is queued and promised: that loads the model, and
    the same request sent again gets this job's video, cached or not. So a client that retries always succeeds.

    Raises:
        ModelLoading: the client is to come back.
        JobFailed, StillRunning, ServerStopping, QueueUnavailable: see `wait_for_video`.
    """
    shared, settings, owner, terms = services(request), settings_of(request), caller.owner, asked.terms
    wait_s = asked_wait_s(request, SCALE_UP_TIMEOUT, settings.wait_s)
    cache = ResultCache(shared, owner)
    key = digest(shared, owner, asked.video, is_seeded=asked.wire.is_seeded, is_exact=terms.exact)

    async def submit() -> StoredJob:
        return await shared.submit(
            asked.video, dialect="huggingface", caller=caller, pictures=asked.pictures, terms=terms, words=WORDS
        )

    # An Idempotency-Key says by itself which job answers: a cached one could not be told from another request's.
    promised = None if terms.idempotency_key else await cache.promised(key)
    is_cached = not terms.idempotency_key and _is_cached(request, asked.wire, settings)
    while True:
        if promised is not None:
            stored = promised
        elif is_cached:
            stored = await cache.get_or_submit(key, submit)
        else:
            stored = await submit()
        waiter = Waiter(shared.waiters, stored.job.id)
        # Whoever waited for a shared job may leave it, and so cancel it, before this request is counted. One that its
        # owner has cancelled stays cancelled.
        if stored.job.status.is_terminal or await waiter.stay() or not is_cached:
            break
        if promised is not None:  # it was left all the same; this is a request like any other now
            await cache.forget_promise(key)
            promised = None
    if terms.idempotency_key:
        await shared.waiters.promise(stored.job.id)
    is_hit = promised is None and stored.job.status.is_terminal
    may_wait = settings.wait_for_model or wants_to_wait(request, asked.wire)
    if not may_wait and not stored.job.status.is_terminal and not await is_loaded(shared, stored.job.request.model):
        await cache.promise(key, stored)
        await asyncio.sleep(HOLD_S)
        raise ModelLoading(asked.name, max(1, await shared.eta_s(stored)), stored.job.id)
    try:
        stored = await wait_for_video(
            shared,
            request,
            stored,
            owner,
            wait_s,
            since=asked.came_at,
            cancel_when_client_leaves=settings.cancel_when_client_leaves and not terms.idempotency_key,
            waiter=waiter,
        )
    except JobFailed:
        await cache.forget_promise(key)
        raise
    content = await shared.read(stored.job.outputs[0].key)
    if promised is not None:
        await cache.forget_promise(key)
    return Response(content, headers=to_wire(stored, "cache" if is_hit else await compute_type(shared, stored.job)))


def to_wire(stored: StoredJob, compute_type: str) -> dict[str, str]:
    """Return the headers of the answer whose body is the video's bytes.

    Args:
        compute_type: "cpu", "gpu", "cache" (then nothing was computed), or "" when nobody knows any more.
    """
    job = stored.job
    seconds = 0.0 if compute_type == "cache" else job.seconds_taken
    headers = {
        "Content-Type": job.outputs[0].media_type,
        "x-compute-time": f"{seconds:.3f}",
        "x-compute-characters": str(len(job.request.prompts[0].prompt)),
        "x-request-id": job.id,
    }
    return headers | ({"x-compute-type": compute_type} if compute_type else {})


def _is_cached(request: Request, wire: Body, settings: HuggingFaceSettings) -> bool:
    if not may_use_cache(request, wire):
        return False
    return settings.cache == "all" or (settings.cache == "seeded" and wire.is_seeded)
