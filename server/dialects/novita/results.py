"""`GET /v3/async/task-result`: what a record means, also as a webhook's payload.

Novita's official client raises on a fraction, a null list, an empty time and a missing `extra`, so every key is always
there with its own type.

Sources: novita.ai/docs "Task Result API" and "Webhook".
"""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel

from polyreel.formats import formats
from polyreel.job import JobStatus, VideoJob
from polyreel.records import StoredJob
from server.dialects import Link
from server.dialects.novita.settings import NovitaSettings

#: What is not here is being worked on: Novita has no words for the stages in between, nor for a cancelled task.
_STATUS = {
    JobStatus.QUEUED: "TASK_STATUS_QUEUED",
    JobStatus.SUCCEEDED: "TASK_STATUS_SUCCEED",
    JobStatus.FAILED: "TASK_STATUS_FAILED",
    JobStatus.CANCELLED: "TASK_STATUS_FAILED",
}


class DebugInfo(BaseModel):
    """Times in milliseconds since the epoch, as text; "0" while it has not happened."""

    request_info: str
    submit_time_ms: str
    execute_time_ms: str
    complete_time_ms: str


class ResultExtra(BaseModel):
    """`seed` is the one that was used, as text."""

    seed: str
    enable_nsfw_detection: bool
    debug_info: DebugInfo


class Task(BaseModel):
    """How the task is getting on; `eta` in whole seconds."""

    task_id: str
    task_type: str
    status: Literal["TASK_STATUS_QUEUED", "TASK_STATUS_PROCESSING", "TASK_STATUS_SUCCEED", "TASK_STATUS_FAILED"]
    reason: str
    eta: int
    progress_percent: int


class VideoFile(BaseModel):
    """A signed link and the seconds, as text, that it is good for."""

    video_url: str
    video_url_ttl: str
    video_type: str


class TaskResult(BaseModel):
    """The whole answer."""

    extra: ResultExtra
    task: Task
    images: list[Any]  # Any: always empty, as the next but one
    videos: list[VideoFile]
    audios: list[Any]


def to_wire(stored: StoredJob, links: list[str], ttl_s: int, eta_s: int) -> dict[str, Any]:
    """Return the task result that a record means. Any: JSON.

    Args:
        links: to the videos of a succeeded job, in the order of `videos`.
        ttl_s: how long the links are good.
        eta_s: whole seconds, 0 at the end.
    """
    job = stored.job
    status = _STATUS.get(job.status, "TASK_STATUS_PROCESSING")
    reason = ""
    if status == "TASK_STATUS_FAILED":
        reason = job.why_not_made
    return {
        "extra": {
            "seed": str(job.request.seed),
            "enable_nsfw_detection": False,
            "debug_info": {
                "request_info": "",
                "submit_time_ms": _ms(job.created_at),
                "execute_time_ms": _ms(job.started_at),
                "complete_time_ms": _ms(job.ended_at),
            },
        },
        "task": {
            "task_id": job.id,
            "task_type": _task_type(job),
            "status": status,
            "reason": reason,
            "eta": eta_s,
            "progress_percent": job.progress,
        },
        "images": [],
        "videos": [
            {"video_url": link, "video_url_ttl": str(ttl_s), "video_type": video_type}
            for link, (_, video_type) in zip(links, videos(stored), strict=True)
        ],
        "audios": [],
    }


def _task_type(job: VideoJob) -> str:
    """Return the type that the submit said, or the nearest one for a job of another dialect."""
    return str(job.vendor.get("task_type") or ("IMG_TO_VIDEO" if job.request.images else "TXT_TO_VIDEO"))


def videos(stored: StoredJob) -> list[tuple[str, str]]:
    """Return (public key, format) of each video; a job of another dialect may also have made archives or pictures."""
    job = stored.job
    if not job.outputs:
        return []
    made = zip(job.output_keys, job.outputs, strict=True)
    return [(key, o.format) for key, o in made if formats()[o.format].kind == "video"]


def result(
    stored: StoredJob, link: Link, retention_s: float, settings: NovitaSettings, *, eta_s: int = 0
) -> dict[str, Any]:
    """Return the task result with links signed now. Any: JSON.

    Args:
        retention_s: how long the server keeps records, seconds.
    """
    job, now = stored.job, time.time()
    ttl_s = settings.link_ttl_s
    if job.ended_at:  # the file goes with the record, and no link promises more than that
        kept_s = min(retention_s, job.keep_s) if job.keep_s else retention_s
        ttl_s = max(0, min(ttl_s, int(job.ended_at + kept_s - now)))
    return to_wire(stored, [link(key, now + ttl_s) for key, _ in videos(stored)], ttl_s, eta_s)


def webhook(stored: StoredJob, link: Link, retention_s: float, settings: NovitaSettings) -> dict[str, Any]:
    """Return the event that a webhook is told at the end: a task result in an envelope. Any: JSON."""
    return {"event_type": "ASYNC_TASK_RESULT", "payload": result(stored, link, retention_s, settings)}


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
