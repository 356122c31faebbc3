"""Errors as both clients show them: `{"error": text}`, the text always a string.

A list makes @huggingface/inference say something general; so does an object, and FastAPI's own `{"detail": [...]}`.
Details stand under keys of their own. No `X-Error-Code`: huggingface_hub takes it for an error of the Hub.
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from polyreel.errors import (
    ContentRefused,
    GenerationFailed,
    InvalidKey,
    InvalidRequest,
    KeyReused,
    MethodNotAllowed,
    MissingKey,
    NotAllowed,
    PolicyUnavailable,
    PolyreelError,
    QueueUnavailable,
    RequestTooLarge,
    StillRunning,
    StorageAway,
    StorageFailed,
    StorageFull,
    TooManyJobs,
    UnknownJob,
    UnknownModel,
    UnknownRoute,
)
from server.dialects.huggingface.settings import HuggingFaceSettings
from server.synchronous import JobFailed, ServerStopping


class ErrorBody(BaseModel):
    """Every refusal.

    Args:
        error: one sentence.
        field: dotted path of the field that is wrong.
        job_id: of the job that failed or goes on.
        estimated_time: seconds until the model is loaded and the video made, with 503 alone.
    """

    error: str
    field: str | None = None
    job_id: str | None = None
    estimated_time: float | None = None


class ModelLoading(PolyreelError):
    """Raised when the client is to come back: no live worker has the model loaded yet."""

    def __init__(self, name: str, estimated_s: int, job_id: str) -> None:
        super().__init__(f"Model {name} is currently loading")
        self.estimated_s = estimated_s
        self.job_id = job_id


#: error: (HTTP status, text instead of the error's own); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str | None], ...] = (
    (MissingKey, 401, "Invalid credentials in Authorization header"),
    (InvalidKey, 401, "Invalid credentials in Authorization header"),
    (NotAllowed, 403, None),
    (UnknownModel, 404, None),
    (UnknownJob, 404, None),
    (UnknownRoute, 404, None),
    (MethodNotAllowed, 405, None),
    (RequestTooLarge, 413, None),
    (KeyReused, 422, None),
    (ContentRefused, 400, None),
    (InvalidRequest, 400, None),
    (TooManyJobs, 429, None),
    (ModelLoading, 503, None),
    (QueueUnavailable, 503, None),
    (PolicyUnavailable, 503, None),
    (StillRunning, 504, None),
    (GenerationFailed, 500, None),
    # Not 503, which @huggingface/inference sends again at once and for ever.
    (StorageFull, 507, None),
    (StorageAway, 500, None),
    (StorageFailed, 500, "The video's file could not be read."),
    (PolyreelError, 500, None),
)


def render_error(err: PolyreelError, settings: HuggingFaceSettings) -> Response:
    """Return an error as an answer; a job's id is its `x-request-id` too, which the clients put into their messages."""
    status, text = next((status, text) for kind, status, text in _ERRORS if isinstance(err, kind))
    body: dict[str, Any] = {"error": text or err.message}  # Any: JSON
    headers = {}
    if isinstance(err, InvalidRequest) and err.field:
        body["field"] = err.field
    if isinstance(err, JobFailed | StillRunning | ServerStopping | ModelLoading):
        body["job_id"] = headers["x-request-id"] = err.job_id
    if isinstance(err, TooManyJobs):
        headers["Retry-After"] = str(err.retry_after_s)
    elif isinstance(err, ModelLoading):
        body["estimated_time"] = float(err.estimated_s)
        headers["Retry-After"] = str(err.estimated_s)
    elif status in (503, 507):
        headers["Retry-After"] = "5"
    return JSONResponse(body, status, headers)
