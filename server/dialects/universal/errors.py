"""Errors as the card's clients and those of the toolkit understand them: `{"ok": false, "error": text}`."""

from __future__ import annotations

from typing import Any, Literal

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
    UnknownRoute,
)
from server.dialects.universal.settings import UniversalSettings
from server.synchronous import JobFailed, ServerStopping


class ErrorBody(BaseModel):
    """Every refusal.

    Args:
        error: one sentence.
        field: dotted path of the field that is wrong.
        job_id: of the job that failed or goes on.
    """

    ok: Literal[False]
    error: str
    field: str | None = None
    job_id: str | None = None


#: error: (HTTP status, text instead of the error's own); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str | None], ...] = (
    (MissingKey, 401, "Invalid credentials in Authorization header"),
    (InvalidKey, 401, "Invalid credentials in Authorization header"),
    (NotAllowed, 403, None),
    (UnknownRoute, 404, None),
    (MethodNotAllowed, 405, None),
    (RequestTooLarge, 413, None),
    (KeyReused, 422, None),
    (ContentRefused, 400, None),
    (InvalidRequest, 400, None),
    (TooManyJobs, 429, None),
    (QueueUnavailable, 503, None),
    (PolicyUnavailable, 503, None),
    (StillRunning, 504, None),
    (GenerationFailed, 500, None),
    # Not 503, which @huggingface/inference sends again at once and for ever.
    (StorageFull, 507, None),
    (StorageAway, 500, None),
    (StorageFailed, 500, "A result file could not be read."),
    (PolyreelError, 500, None),
)


def render_error(err: PolyreelError, settings: UniversalSettings) -> Response:
    """Return an error as an answer; a job's id is its `x-request-id` too, which Hugging Face's clients show."""
    status, text = next((status, text) for kind, status, text in _ERRORS if isinstance(err, kind))
    body: dict[str, Any] = {"ok": False, "error": text or err.message}  # Any: JSON
    headers = {}
    if isinstance(err, InvalidRequest) and err.field:
        body["field"] = err.field
    if isinstance(err, JobFailed | StillRunning | ServerStopping):
        body["job_id"] = headers["x-request-id"] = err.job_id
    if isinstance(err, TooManyJobs):
        headers["Retry-After"] = str(err.retry_after_s)
    elif status in (503, 507):
        headers["Retry-After"] = "5"
    return JSONResponse(body, status, headers)
