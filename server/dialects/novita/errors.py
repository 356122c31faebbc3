"""Every error in Novita's flat envelope, `{"code": …, "reason": …, "message": …, "metadata": {}}`.

Source: novita.ai/docs, the error code page.
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
    StorageFull,
    TooManyJobs,
    UnknownJob,
    UnknownModel,
    UnknownRoute,
    UnusablePicture,
)
from server.dialects.novita.settings import NovitaSettings


class Problem(BaseModel):
    """The error body; `code` is the HTTP status."""

    code: int
    reason: str
    message: str
    metadata: dict[str, Any]  # Any: JSON; always empty here


class ResultUnavailable(QueueUnavailable):
    """Raised when Redis does not answer a poll, which Novita calls otherwise than a refused submit."""


#: error: (HTTP status, reason); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str], ...] = (
    (MissingKey, 401, "MISSING_API_KEY"),
    (InvalidKey, 403, "INVALID_API_KEY"),
    (NotAllowed, 403, "API_NOT_ALLOWED"),
    (UnknownJob, 404, "TASK_NOT_FOUND"),
    (UnknownRoute, 404, "API_NOT_FOUND"),
    # HTTP's own status under the nearest documented reason: there is no such API with this method.
    (MethodNotAllowed, 405, "API_NOT_FOUND"),
    (RequestTooLarge, 413, "INVALID_REQUEST_BODY"),
    (KeyReused, 422, "INVALID_REQUEST_BODY"),
    # The page has no reason for a refused prompt; the message says that it was refused.
    (ContentRefused, 400, "INVALID_REQUEST_BODY"),
    (InvalidRequest, 400, "INVALID_REQUEST_BODY"),
    (UnknownModel, 400, "INVALID_REQUEST_BODY"),
    (TooManyJobs, 429, "RATE_LIMIT_EXCEEDED"),
    (ResultUnavailable, 503, "GET_RESULT_FAILED"),
    (QueueUnavailable, 503, "CREATE_TASK_FAILED"),
    (PolicyUnavailable, 503, "CREATE_TASK_FAILED"),
    (StillRunning, 504, "GET_RESULT_FAILED"),
    (GenerationFailed, 500, "TASK_FAILED"),
    (StorageFull, 503, "CREATE_TASK_FAILED"),
    (StorageAway, 503, "CREATE_TASK_FAILED"),
    (PolyreelError, 500, "INTERNAL_SERVER_ERROR"),
)


#: Of `UnusablePicture`, by its fault.
_PICTURE_REASONS = {
    "format": "INVALID_IMAGE_FORMAT",
    "pixels": "IMAGE_EXCEEDS_MAX_RESOLUTION",
    "bytes": "IMAGE_FILE_EXCEEDS_MAX_SIZE",
}


def render_error(err: PolyreelError, settings: NovitaSettings) -> Response:
    """Return the vendor's error body; it has no settings of its own."""
    status, reason = next((status, reason) for kind, status, reason in _ERRORS if isinstance(err, kind))
    if isinstance(err, UnusablePicture):
        reason = _PICTURE_REASONS[err.fault]
    headers = {}
    if isinstance(err, TooManyJobs):
        headers["Retry-After"] = str(err.retry_after_s)
    elif status == 503:
        headers["Retry-After"] = "5"
    body = Problem(code=status, reason=reason, message=err.message, metadata={})
    return JSONResponse(body.model_dump(), status, headers)
