"""What administrators did: the entries of `polyreel.audit`, the newest first."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from polyreel.audit import Entry, entries
from polyreel.errors import InvalidRequest
from server.credentials import bearer
from server.dialects.native.problems import MEDIA, Problem
from server.openapi import documents
from server.services import services

_Exact = ConfigDict(extra="forbid")

#: Entries of a page, and of one that names no number.
_MOST, _USUAL = 1000, 100

router = APIRouter()


class EntryAnswer(BaseModel):
    """Who did what, when, through which request."""

    model_config = _Exact
    id: str
    at: float = Field(description="Seconds since the epoch by Redis' clock.")
    actor: str = Field(description="Owner of the key, or `command line (user)`.")
    key: str = Field(description="Id of the stored key, empty for another.")
    action: str = Field(description="Such as `keys.create` or `models.unload`.")
    subject: str
    detail: dict[str, str]
    request_id: str
    address: str


class AuditAnswer(BaseModel):
    """A page of entries; `next` is what to send as `before` for the one after it, null on the last."""

    model_config = _Exact
    entries: list[EntryAnswer]
    next: str | None


_QUERY = (
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": _MOST, "default": _USUAL}},
    {"name": "before", "in": "query", "schema": {"type": "string"}, "description": "id of an entry: only older ones"},
)


@router.get("/audit", **documents(answer=AuditAnswer, errors=Problem, error_media=MEDIA, parameters=_QUERY))
async def audit(request: Request) -> Response:
    """List what administrators did, the newest first; for keys with the scope admin."""
    shared = services(request)
    await shared.caller(bearer(request), "admin")
    limit, before = _limit(request.query_params.get("limit", "")), request.query_params.get("before", "")
    found = await shared.gate.in_thread(entries, shared.queue.records.client, limit + 1, before)
    page = found[:limit]
    return JSONResponse(
        {"entries": [_to_wire(entry) for entry in page], "next": page[-1].id if len(found) > limit else None}
    )


def _to_wire(entry: Entry) -> dict[str, Any]:  # Any: JSON
    return EntryAnswer(**entry.to_dict()).model_dump(mode="json")


def _limit(text: str) -> int:
    if not text:
        return _USUAL
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= _MOST):
        raise InvalidRequest(f"limit must be a whole number from 1 to {_MOST}, got {text[:40]!r}", "limit")
    return int(text)
