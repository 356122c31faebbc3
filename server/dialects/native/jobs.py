"""Jobs of every dialect: read and cancelled by their owner."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from polyreel.estimates import Estimate
from polyreel.job import JobStatus
from polyreel.records import StoredJob
from server.credentials import bearer
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


router = APIRouter()


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
