"""Polyreel's own API, `/polyreel/v1`: read and cancel a job, whichever dialect it was submitted in.

    GET  /polyreel/v1/jobs/{id}
    POST /polyreel/v1/jobs/{id}/cancel

Errors are RFC 9457 problems. Every field is in `docs/compatibility/native.md`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from polyreel.errors import (
    InvalidKey,
    InvalidRequest,
    KeyReused,
    MethodNotAllowed,
    MissingKey,
    NotAllowed,
    NotCancellable,
    PolyreelError,
    QueueUnavailable,
    RequestTooLarge,
    TooManyJobs,
    UnknownJob,
    UnknownModel,
    UnknownRoute,
)
from polyreel.estimates import Estimate
from polyreel.job import JobStatus
from polyreel.records import StoredJob
from server.credentials import bearer
from server.dialects import Dialect, NoSettings
from server.services import Services, services


def to_wire(stored: StoredJob, links: list[str], found: Estimate) -> dict[str, Any]:
    """Return what a record means. Any: JSON.

    Args:
        links: to the files of a succeeded job, in the order of its outputs.
        found: where it stands; asked of a job that waits or runs.
    """
    job = stored.job
    waits = stored.claimable and not job.status.is_terminal
    return {
        "id": job.id,
        "number": stored.number,
        "status": job.status.value,
        "model": job.request.model,
        "dialect": job.dialect,
        "lane": job.lane,
        "stage": job.stage,
        "progress": job.progress,
        "step": job.step,
        "total_steps": job.total_steps,
        "position": found.position if waits else None,
        "eta_s": None if found.eta_s is None else round(found.eta_s, 1),
        "attempts": job.attempts,
        "resumed_from": job.resumed_from,
        "created_at": job.created_at,
        "started_at": job.started_at or None,
        "ended_at": job.ended_at or None,
        "error": {"code": job.error_code, "message": job.error_message} if job.status is JobStatus.FAILED else None,
        "outputs": [
            {
                "url": link,
                "format": output.format,
                "media_type": output.media_type,
                "bytes": output.bytes,
                "height": output.height,
                "width": output.width,
                "num_frames": output.num_frames,
                "fps": output.fps,
                "sha256": output.sha256,
            }
            for link, output in zip(links, job.outputs, strict=True)
        ],
    }


#: error: (HTTP status, title); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str], ...] = (
    (MissingKey, 401, "No API key"),
    (InvalidKey, 401, "Wrong API key"),
    (NotAllowed, 403, "Not allowed"),
    (UnknownJob, 404, "No such job"),
    (UnknownModel, 404, "No such model"),
    (UnknownRoute, 404, "Not found"),
    (MethodNotAllowed, 405, "Method not allowed"),
    (NotCancellable, 409, "Too late to cancel"),
    (RequestTooLarge, 413, "Request too large"),
    (KeyReused, 422, "Idempotency-Key used before"),
    (InvalidRequest, 400, "Wrong request"),
    (TooManyJobs, 429, "Queue full"),
    (QueueUnavailable, 503, "Queue unavailable"),
    (PolyreelError, 500, "Server error"),
)


def render_error(err: PolyreelError, settings: NoSettings) -> Response:
    """Return the problem that an error means; `code` is stable, `detail` is written for people."""
    status, title = next((status, title) for kind, status, title in _ERRORS if isinstance(err, kind))
    detail = "The server made a mistake with this request." if status == 500 else err.message or title
    body: dict[str, Any] = {  # Any: JSON
        "type": f"urn:polyreel:{err.code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": err.code,
    }
    headers = {}
    if isinstance(err, InvalidRequest) and err.field:
        body["field"] = err.field
    if isinstance(err, NotCancellable):
        body["reason"] = err.reason
    if isinstance(err, TooManyJobs):
        headers["Retry-After"] = str(err.retry_after_s)
    elif status == 503:
        headers["Retry-After"] = "5"
    elif status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers, media_type="application/problem+json")


router = APIRouter(prefix="/polyreel/v1")


@router.get("/jobs/{job_id}")
async def get_job(request: Request, job_id: str) -> Response:
    """Answer how a job is getting on."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    return await _answer(shared, request, await shared.get(job_id, caller.owner))


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(request: Request, job_id: str) -> Response:
    """End a job that waits or runs; again is no error, too late is 409."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "submit")
    return await _answer(shared, request, await shared.cancel(job_id, caller.owner))


async def _answer(shared: Services, request: Request, stored: StoredJob) -> Response:
    job = stored.job
    base_url, expires_at = shared.base_url(request), job.ended_at + shared.settings.retention_s
    links = [shared.link(base_url, key, expires_at) for key, _ in zip(job.output_keys, job.outputs, strict=False)]
    return JSONResponse(to_wire(stored, links, await shared.estimate(stored)))


DIALECT = Dialect(name="native", prefixes=("/polyreel/",), router=router, render_error=render_error)
