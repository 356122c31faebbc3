"""`GET /jobs/{id}/events`: a job's progress as server-sent events, until it has ended.

    progress            what is new: stage, step, percent, place, estimate, a picture
    end                 the whole job, once it has ended; nothing comes after it
    gone                the job was deleted while it was followed
    server-restarting   this process is told to stop; connect again, the job goes on

Each event has an id that says what was told. A client that connects again with `Last-Event-ID` is told what has changed
since, the end above all; one that has been told the end is answered 204, which ends `EventSource`'s tries.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from polyreel.errors import InvalidKey, MissingKey, NotAllowed, QueueUnavailable
from polyreel.previews import MEDIA_TYPE, parse_preview, preview_key
from polyreel.records import StoredJob
from server.credentials import bearer
from server.dialects.native.answer import place_of
from server.dialects.native.jobs import answer_of
from server.dialects.native.problems import MEDIA, Problem
from server.gate import budget
from server.openapi import documents
from server.services import Services, services
from server.watching import Look, Watch

#: A stream without news says that it lives this often, seconds: proxies cut what is silent for a minute.
_PING_S = 15.0

#: How often a stream asks whether its key is still good, and whether the server is to stop, seconds.
_CHECK_S = 1.0

#: What a client is told to wait before it connects again, milliseconds.
_RETRY_MS = 1000

router = APIRouter()

_LAST = (
    {
        "name": "Last-Event-ID",
        "in": "header",
        "required": False,
        "description": "id of the last event that was received",
        "schema": {"type": "string"},
    },
)


_DOCUMENTED = documents(
    answer={"type": "string"}, answer_media="text/event-stream", errors=Problem, error_media=MEDIA, parameters=_LAST
)
_DOCUMENTED["responses"][204] = {"description": "The end was told before"}


@router.get("/jobs/{job_id}/events", **_DOCUMENTED)
async def follow(request: Request, job_id: str) -> Response:
    """Tell what becomes of a job as it happens."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    stored = await shared.get(job_id, caller.owner)
    last = request.headers.get("last-event-id", "")
    if stored.job.status.is_terminal and last == _id_of(stored):
        return Response(status_code=204)
    # A proxy that buffers would hold events back: nginx is asked not to.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_events(shared, request, stored.job.id, caller.owner, last), headers=headers)


async def _events(shared: Services, request: Request, job_id: str, owner: str, last: str) -> AsyncIterator[bytes]:
    """Write the stream of one client."""

    async def read() -> Look | None:
        return await _look(shared, job_id)

    yield format_sse_event(retry=_RETRY_MS)
    async with shared.watches.following(job_id, read) as watch:
        version, shown, said_at = 0, -1, time.monotonic()
        while True:
            is_news = await _news(shared, watch, version)
            if watch.is_gone:
                yield _event("gone", {"id": job_id})
                return
            if is_news and watch.latest:
                version, look = watch.version, watch.latest
                if look.stored.job.status.is_terminal:
                    yield _event("end", await _whole(shared, request, look.stored), _id_of(look.stored))
                    return
                if _id_of(look.stored) != last:
                    last, picture = "", None
                    if look.preview and look.preview.step != shown:
                        shown, picture = look.preview.step, look.preview.jpeg
                    yield _event("progress", _progress(look, picture), _id_of(look.stored))
                    said_at = time.monotonic()
            if shared.stopping.is_set():
                yield _event("server-restarting", {"id": job_id})
                return
            if not await _may_follow(shared, request, owner):
                return
            if time.monotonic() - said_at >= _PING_S:
                yield KEEPALIVE_COMMENT
                said_at = time.monotonic()


async def _news(shared: Services, watch: Watch, version: int) -> bool:
    """Wait for something new, for the stop, or for the next check; return whether there is something new."""
    if shared.stopping.is_set():
        return watch.version > version
    stop = asyncio.ensure_future(shared.stopping.wait())
    news = asyncio.ensure_future(watch.newer_than(version, _CHECK_S))
    try:
        await asyncio.wait({stop, news}, return_when=asyncio.FIRST_COMPLETED)
        return watch.version > version
    finally:
        stop.cancel()
        news.cancel()


async def _may_follow(shared: Services, request: Request, owner: str) -> bool:
    """Return whether the key that opened a stream is still good; while nobody can tell, it is."""
    try:
        with budget():
            caller = await shared.caller(bearer(request), "read")
    except (MissingKey, InvalidKey, NotAllowed):
        return False
    except QueueUnavailable:
        return True
    return caller.owner == owner


async def _look(shared: Services, job_id: str) -> Look | None:
    """Read a job, where it stands and its newest picture."""
    stored = await shared.record(job_id)
    if stored is None:
        return None
    found = await shared.estimate(stored)
    if stored.claimable or stored.job.status.is_terminal:
        return Look(stored, found, None)
    async with shared.gate.asking():
        return Look(stored, found, parse_preview(await shared.reader.get(preview_key(job_id))))


async def _whole(shared: Services, request: Request, stored: StoredJob) -> dict[str, Any]:
    with budget():
        return await answer_of(shared, request, stored)


def _progress(look: Look, picture: bytes | None) -> dict[str, Any]:
    job, eta_s = look.stored.job, look.found.eta_s
    return {
        "id": job.id,
        "status": job.status.value,
        "stage": job.stage,
        "step": job.step,
        "total_steps": job.total_steps,
        "progress": job.progress,
        "position": place_of(look.stored, look.found),
        "eta_s": None if eta_s is None else round(eta_s, 1),
        "preview": f"data:{MEDIA_TYPE};base64,{base64.b64encode(picture).decode()}" if picture else None,
    }


def _id_of(stored: StoredJob) -> str:
    """Return the id of the event that tells a record: the same in whatever process tells it."""
    job = stored.job
    return f"{job.status.value}.{job.attempts}.{job.step}.{job.progress}"


def _event(name: str, data: dict[str, Any], event_id: str | None = None) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data), id=event_id)
