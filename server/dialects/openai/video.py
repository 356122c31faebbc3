"""The video object: what a record means in OpenAI's words."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from polyreel.catalogue import Catalogue
from polyreel.errors import ContentRefused
from polyreel.job import JobStatus, VideoJob
from polyreel.records import StoredJob
from server.dialects.openai.errors import MODERATION_BLOCKED

#: What is not here is in progress. There is no word for a cancelled video: it is one that failed.
_STATUS = {
    JobStatus.QUEUED: "queued",
    JobStatus.SUCCEEDED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "failed",
}


class VideoError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class Video(BaseModel):
    """The video object, as an answer."""

    model_config = ConfigDict(protected_namespaces=())
    id: str
    object: Literal["video"] = "video"
    created_at: int
    completed_at: int | None
    expires_at: int | None
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    model: str
    prompt: str
    seconds: str
    size: str
    remixed_from_video_id: str | None
    error: VideoError | None


class VideoList(BaseModel):
    """A page of videos, as an answer."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool


def to_wire(stored: StoredJob, catalogue: Catalogue, retention_s: float) -> dict[str, Any]:
    """Return the video object that a record means, whichever dialect made it. Any: JSON.

    Args:
        retention_s: how long this server keeps any job, seconds.
    """
    job = stored.job
    request = job.request
    is_completed = job.status is JobStatus.SUCCEEDED
    return Video.model_validate(
        {
            "id": job.id,
            "created_at": int(job.created_at),
            "completed_at": int(job.ended_at) if is_completed else None,
            "expires_at": int(job.kept_until(retention_s)) if is_completed else None,
            "status": _STATUS.get(job.status, "in_progress"),
            "progress": job.progress,
            "model": _model(job, catalogue),
            "prompt": "\n".join(span.prompt for span in request.prompts),
            "seconds": f"{request.num_frames / request.fps:.6g}",
            "size": f"{request.delivered_width}x{request.delivered_height}",
            "remixed_from_video_id": job.vendor.get("remixed_from"),
            "error": _error(job),
        }
    ).model_dump()


def _model(job: VideoJob, catalogue: Catalogue) -> str:
    """Return the model's name as the client sent it, else the entry's first one in this dialect, else the entry's."""
    if job.dialect == "openai" and "model" in job.vendor:
        return str(job.vendor["model"])
    entry = catalogue.models.get(job.request.model)
    return next(iter(entry.names.get("openai", ())), job.request.model) if entry else job.request.model


def _error(job: VideoJob) -> dict[str, str] | None:
    if job.status is JobStatus.CANCELLED:
        return {"code": "cancelled", "message": "The video was cancelled."}
    if job.status is JobStatus.FAILED:
        code = MODERATION_BLOCKED if job.error_code == ContentRefused.code else job.error_code
        return {"code": code or "generation_failed", "message": job.error_message}
    return None
