"""The vendor's error body for every error: `{"status": "error", "message": …}`.

Source: docs.modelslab.com "Error Codes".
"""

from __future__ import annotations

from typing import Any, Literal

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
from server.dialects.modelslab.settings import ModelsLabSettings


class ErrorAnswer(BaseModel):
    """For the OpenAPI document; `failed` is that of an unknown id."""

    status: Literal["error", "failed"]
    message: str
    tip: str = ""
    retry_after: int = 0
    id: str = ""
    output: list[str] = []


class Unreadable(InvalidRequest):
    """Raised for a body that is no JSON object."""


class PictureNotFetched(InvalidRequest):
    """Raised when the picture behind a link cannot be had."""


#: error: (HTTP status, text; "{}" is the error's own); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str], ...] = (
    (MissingKey, 401, "API key required"),
    (InvalidKey, 401, "Invalid API key"),
    (NotAllowed, 403, "{}"),
    (UnknownJob, 404, "Request not found"),
    (UnknownRoute, 404, "{}"),
    (MethodNotAllowed, 405, "{}"),
    (RequestTooLarge, 413, "{}"),
    (KeyReused, 422, "{}"),
    (Unreadable, 400, "Invalid API Request"),
    (PictureNotFetched, 400, "Unable to fetch image from provided URL: {}"),
    (ContentRefused, 400, "{}"),
    (InvalidRequest, 400, "{}"),
    (UnknownModel, 400, "{}"),
    # The page goes on with the number of its plans; here the sentence says which limit it was.
    (TooManyJobs, 429, "Rate limit exceeded. {}"),
    (QueueUnavailable, 503, "Service temporarily unavailable. Please try again later."),
    (PolicyUnavailable, 503, "Service temporarily unavailable. Please try again later."),
    (StorageFull, 503, "Service temporarily unavailable. Please try again later."),
    (StorageAway, 503, "Service temporarily unavailable. Please try again later."),
    (PolyreelError, 500, "Internal server error. Please try again."),
)


def render_error(err: PolyreelError, settings: ModelsLabSettings) -> Response:
    """Return the vendor's error body."""
    status, text = next((status, text) for kind, status, text in _ERRORS if isinstance(err, kind))
    body: dict[str, Any] = {"status": "error", "message": text.replace("{}", err.message)}  # Any: JSON
    headers = {}
    if isinstance(err, UnknownJob):
        # The recorded answer says "failed", and the documented loop ends only on that word.
        body |= {"status": "failed", "id": "", "output": []}
    elif isinstance(err, Unreadable):
        body["tip"] = err.message
    elif isinstance(err, TooManyJobs):
        body["retry_after"] = err.retry_after_s
        headers["Retry-After"] = str(err.retry_after_s)
    elif status == 503:
        headers["Retry-After"] = "5"
    return JSONResponse(body, status if settings.error_http == "documented" else 200, headers)
