"""Webhooks: what they are told, under which secret, what became of them, and once more.

They follow Standard Webhooks, so receivers verify them with its libraries; `docs/webhooks.md` explains them to users.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from polyreel.errors import NotDeliverable
from polyreel.estimates import Estimate
from polyreel.records import StoredJob
from polyreel.signing import message_id
from polyreel.webhooks import Attempt, Deliveries
from server.credentials import bearer
from server.dialects import Link, NoSettings
from server.dialects.native.answer import to_wire
from server.dialects.native.jobs import links_of
from server.dialects.native.problems import MEDIA, Problem
from server.openapi import documents
from server.services import Services, services


class AttemptAnswer(BaseModel):
    """One attempt."""

    attempt: int = Field(description="Counts all attempts for this job, from 1.")
    at: float = Field(description="When it was over, seconds since the epoch.")
    status: int | None = Field(description="HTTP status of the reply, null when none came.")
    error: str = Field(description="Why it did not count, empty for a success.")
    ms: int = Field(description="How long it took, milliseconds.")
    next_at: float | None = Field(description="When the next one was due then, null for none.")


class DeliveriesAnswer(BaseModel):
    """What became of a job's webhook."""

    id: str = Field(description="The message's id, the same in every attempt: the header `webhook-id`.")
    url: str
    state: Literal["waiting", "pending", "delivered", "failed"] = Field(
        description="waiting: the job has not ended; failed: given up, until somebody asks for a redelivery."
    )
    attempts: int
    next_at: float | None = Field(description="When the next attempt is due, null for none or while one is under way.")
    log: list[AttemptAnswer] = Field(description="The last 50 attempts, the oldest first.")


class SecretAnswer(BaseModel):
    """The caller's own secret."""

    secret: str = Field(description="`whsec_` and base64: what the libraries of Standard Webhooks want.")
    older: list[str] = Field(description="Secrets that sign too, while the operator changes the server's.")


_REFUSED: dict[str, Any] = {"errors": Problem, "error_media": MEDIA}  # Any: of `documents`

router = APIRouter()


@router.get("/webhooks/secret", **documents(answer=SecretAnswer, **_REFUSED))
async def get_secret(request: Request) -> Response:
    """Answer the secret that signs the caller's webhooks; another owner's tells nothing about it."""
    shared = services(request)
    # Not "read": who knows the secret can tell the caller's own receivers whatever he likes.
    caller = await shared.caller(bearer(request), "submit")
    secret, *older = shared.webhook_signer.secrets_of(caller.owner)
    return JSONResponse({"secret": secret, "older": older}, headers={"Cache-Control": "no-store"})


@router.get("/jobs/{job_id}/deliveries", **documents(answer=DeliveriesAnswer, **_REFUSED))
async def get_deliveries(request: Request, job_id: str) -> Response:
    """Answer what became of a job's webhook, with a log of its attempts."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    return await _answer(shared, await shared.get(job_id, caller.owner))


@router.post("/jobs/{job_id}/redeliver", **documents(answer=DeliveriesAnswer, status=202, **_REFUSED))
async def redeliver(request: Request, job_id: str) -> Response:
    """Deliver a job's webhook again, now and with all its tries, under the same id; while the job's record is kept."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "submit")
    stored = await shared.get(job_id, caller.owner)
    await shared.gate.in_thread(shared.queue.webhooks.redeliver, stored.job.id)
    return await _answer(shared, stored, 202)


async def _answer(shared: Services, stored: StoredJob, status: int = 200) -> Response:
    if not stored.job.webhook:
        raise NotDeliverable("This job was submitted without a webhook, so there is nothing to deliver.")
    found = await shared.gate.in_thread(shared.queue.webhooks.deliveries, stored.job.id)
    return JSONResponse(_to_wire(stored, found), status)


def _to_wire(stored: StoredJob, found: Deliveries) -> dict[str, Any]:
    return {
        "id": message_id(stored.job.id),
        "url": stored.job.webhook,
        "state": found.state if stored.job.status.is_terminal else "waiting",
        "attempts": found.attempts,
        "next_at": found.next_at,
        "log": [_attempt(attempt) for attempt in found.log],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.attempt,
        "at": attempt.at,
        "status": attempt.status,
        "error": attempt.error,
        "ms": attempt.ms,
        "next_at": attempt.next_at,
    }


def webhook(stored: StoredJob, link: Link, retention_s: float, settings: NoSettings) -> dict[str, Any]:
    """Return what a webhook is told of an ended job: its type, when it ended, and the job as `GET` answers it."""
    job = stored.job
    ended_at = datetime.fromtimestamp(job.ended_at, UTC).isoformat(timespec="milliseconds")
    return {
        "type": f"job.{job.status.value}",
        "timestamp": ended_at.replace("+00:00", "Z"),
        "data": to_wire(stored, links_of(stored, link, retention_s), Estimate(0, 0.0), retention_s),
    }
