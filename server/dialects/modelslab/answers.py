"""What clients are told of a job: by the answers to submit and fetch, and by its webhook.

Sources: the older page's example response, the schema `VideoResponse`, the page "Webhooks", and answers of the live
service that public repositories hold.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from polyreel.formats import formats
from polyreel.job import JobStatus, VideoJob
from polyreel.records import StoredJob
from server.dialects import Link
from server.dialects.modelslab.meta import meta
from server.dialects.modelslab.settings import ModelsLabSettings

#: `temp: true` keeps the record and its file for this long, seconds.
TEMP_S = 24 * 3600


class VideoAnswer(BaseModel):
    """For the OpenAPI document: which keys there are depends on `status`."""

    status: Literal["success", "processing", "failed"]
    id: int
    output: list[str]
    tip: str = ""
    eta: int = 0
    message: str = ""
    fetch_result: str = ""
    generationTime: float = 0.0
    proxy_links: list[str] = []
    future_links: list[str] = []
    meta: dict[str, Any] = {}  # Any: JSON


class RequestCount(BaseModel):
    """The answer to `request_count`."""

    status: Literal["success"] = "success"
    processing_count: int
    message: str = "Current processing request count retrieved successfully"


class SystemDetails(BaseModel):
    """The answer to `system_details`; the page shows it of a server at rest and explains neither number.

    Args:
        model_count: models in the memory of workers.
        queue_time: seconds until the job that was taken in last will be done.
    """

    model_count: int
    queue_time: int
    status: Literal["ok"] = "ok"


def to_wire(stored: StoredJob, links: list[str], fetch_link: str, eta_s: int) -> dict[str, Any]:
    """Return the answer that a record means, the same at submit and at fetch. Any: JSON.

    A failed job is `failed`, never `error`: the documented polling loop stops only on the former.

    Args:
        links: to its outputs, existing or future; jobs of this dialect have one.
        fetch_link: where the client asks next.
        eta_s: whole seconds; several clients refuse a fraction.
    """
    job = stored.job
    if job.status is JobStatus.SUCCEEDED:
        return {
            "status": "success",
            "generationTime": round(job.seconds_taken, 2),
            "id": stored.number,
            "output": links,
            "proxy_links": links,
            "meta": meta(stored),
        }
    if job.status.is_terminal:
        return {"status": "failed", "id": stored.number, "message": job.why_not_made, "output": []}
    return {
        "status": "processing",
        "tip": "Your video is processing in background, you can get this video using fetch API",
        "eta": eta_s,
        "message": "Try to fetch request after seconds estimated",
        "fetch_result": fetch_link,
        "id": stored.number,
        "output": [],
        "meta": meta(stored),
        "future_links": links,
    }


def webhook_body(stored: StoredJob, link: Link, retention_s: float, settings: ModelsLabSettings) -> dict[str, Any]:
    """Return what the webhook of an ended job is told. Any: JSON.

    The page shows an `id` of letters; every answer of the API has the integer, so this one too.
    """
    job = stored.job
    track_id = meta(stored)["track_id"]
    if job.status is not JobStatus.SUCCEEDED:
        return {"status": "failed", "id": stored.number, "message": job.why_not_made, "track_id": track_id}
    expires_at = links_end_at(job, retention_s)
    return {
        "status": "success",
        "id": stored.number,
        "output": [link(key, expires_at) for key in output_keys(job)],
        "generationTime": round(job.seconds_taken, 2),
        "track_id": track_id,
        "meta": meta(stored),
    }


def output_keys(job: VideoJob) -> list[str]:
    """Return the public keys of a job's outputs; the still pictures that another dialect asks for beside are none."""
    made, known = zip(job.output_keys, job.request.outputs, strict=True), formats()
    return [key for key, spec in made if known[spec.format].kind != "picture"]


def links_end_at(job: VideoJob, retention_s: float) -> float:
    """Return until when links are good, seconds since the epoch: known at submit, so that no answer changes them.

    A job of another dialect, or of a key with a retention of its own, may be kept more briefly, counted from an end
    that is not known yet: then its links outlive its file.
    """
    # Records of 0.1 say it in `vendor`, those since by `keep_s`, which may also be of the key.
    is_temp = job.vendor.get("temp") or (job.dialect == "modelslab" and 0 < job.keep_s <= TEMP_S)
    return job.created_at + (min(TEMP_S, retention_s) if is_temp else retention_s)
