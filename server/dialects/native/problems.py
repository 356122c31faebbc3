"""Errors as RFC 9457 problems."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from polyreel.errors import (
    ContentRefused,
    InvalidKey,
    InvalidRequest,
    KeyReused,
    MethodNotAllowed,
    MissingKey,
    NotAllowed,
    NotCancellable,
    NotDeliverable,
    PolicyUnavailable,
    PolyreelError,
    QueueUnavailable,
    RequestTooLarge,
    StorageAway,
    StorageFull,
    TooManyJobs,
    UnknownJob,
    UnknownModel,
    UnknownRoute,
)
from server.dialects import NoSettings

#: Content type of an error.
MEDIA = "application/problem+json"


class Problem(BaseModel):
    """An error; `code` is stable, `detail` is written for people."""

    model_config = ConfigDict(extra="forbid")
    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str = ""
    reason: str = ""


class NoPreview(PolyreelError):
    """Raised when a job has no picture to show: it waits, it has ended, or its model makes none."""

    code = "no_preview"

    def __init__(self) -> None:
        super().__init__("There is no preview of this job now.")


class NoWorker(PolyreelError):
    """Raised when nobody lives who could do what an administrator asks."""

    code = "no_worker"


#: error: (HTTP status, title); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str], ...] = (
    (MissingKey, 401, "No API key"),
    (InvalidKey, 401, "Wrong API key"),
    (NotAllowed, 403, "Not allowed"),
    (UnknownJob, 404, "No such job"),
    (UnknownModel, 404, "No such model"),
    (NoPreview, 404, "No preview"),
    (UnknownRoute, 404, "Not found"),
    (MethodNotAllowed, 405, "Method not allowed"),
    (NoWorker, 409, "No such worker"),
    (NotCancellable, 409, "Too late to cancel"),
    (NotDeliverable, 409, "Nothing to deliver"),
    (RequestTooLarge, 413, "Request too large"),
    (KeyReused, 422, "Idempotency-Key used before"),
    (ContentRefused, 400, "Content refused"),
    (InvalidRequest, 400, "Wrong request"),
    (TooManyJobs, 429, "Queue full"),
    (QueueUnavailable, 503, "Queue unavailable"),
    (PolicyUnavailable, 503, "Content policy unavailable"),
    (StorageFull, 507, "Storage full"),
    (StorageAway, 503, "Storage unavailable"),
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
    elif status in (503, 507):
        headers["Retry-After"] = "5"
    elif status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers, media_type=MEDIA)
