"""OpenAI's error envelope: `{"error": {"message", "type", "param", "code"}}`.

Its clients choose the class of their exception by the HTTP status alone.
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from polyreel.errors import (
    ContentRefused,
    InvalidKey,
    InvalidRequest,
    KeyReused,
    MethodNotAllowed,
    MissingKey,
    NotAllowed,
    NotCancellable,
    NotServedYet,
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


class ErrorDetails(BaseModel):
    """What is wrong; `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The envelope."""

    error: ErrorDetails


class NoContent(PolyreelError):
    """Raised when a video has no such file (yet)."""

    code = "no_content"


#: What OpenAI calls a refusal by its own policy, of a request as of a video.
MODERATION_BLOCKED = "moderation_blocked"

#: error: (HTTP status, type, code); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str, str | None], ...] = (
    (MissingKey, 401, "invalid_request_error", None),
    (InvalidKey, 401, "invalid_request_error", "invalid_api_key"),
    (NotAllowed, 403, "invalid_request_error", "not_allowed"),
    (NoContent, 404, "invalid_request_error", None),
    (UnknownJob, 404, "invalid_request_error", None),
    (UnknownModel, 404, "invalid_request_error", "model_not_found"),
    (UnknownRoute, 404, "invalid_request_error", "unknown_url"),
    (MethodNotAllowed, 405, "invalid_request_error", "method_not_allowed"),
    # Clients repeat a 409 by themselves, which is right: the video will have ended in a moment.
    (NotCancellable, 409, "invalid_request_error", "video_finishing"),
    (RequestTooLarge, 413, "invalid_request_error", "request_too_large"),
    (KeyReused, 422, "idempotency_error", "idempotency_key_reused"),
    (NotServedYet, 400, "invalid_request_error", "unsupported"),
    (ContentRefused, 400, "invalid_request_error", MODERATION_BLOCKED),
    (InvalidRequest, 400, "invalid_request_error", "invalid_value"),
    (TooManyJobs, 429, "rate_limit_error", "rate_limit_exceeded"),
    (QueueUnavailable, 503, "server_error", "service_unavailable"),
    (PolicyUnavailable, 503, "server_error", "service_unavailable"),
    (StorageFull, 503, "server_error", "service_unavailable"),
    (StorageAway, 503, "server_error", "service_unavailable"),
    (PolyreelError, 500, "server_error", None),
)


def render_error(err: PolyreelError, settings: Any) -> Response:
    """Return the envelope of an error. Any: the dialect's settings, which change nothing here."""
    status, kind, code = next((status, kind, code) for cls, status, kind, code in _ERRORS if isinstance(err, cls))
    message = "The server had an error while processing your request." if status == 500 else err.message
    body = ErrorBody(error=ErrorDetails(message=message, type=kind, param=_param(err), code=code))
    headers = {}
    if isinstance(err, TooManyJobs):
        headers["Retry-After"] = str(err.retry_after_s)
    elif status == 503:
        headers["Retry-After"] = "5"
    return JSONResponse(body.model_dump(), status, headers)


def _param(err: PolyreelError) -> str | None:
    if isinstance(err, InvalidRequest):
        return err.field or None
    return "model" if isinstance(err, UnknownModel) else None
