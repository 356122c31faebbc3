"""`GET /health` (the API lives; no I/O) and `GET /ready` (jobs can be taken), both without a key."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

from polyreel.errors import QueueUnavailable
from server.couriers import couriers
from server.openapi import documents
from server.services import services

router = APIRouter()


@router.api_route("/health", methods=["GET", "HEAD"], response_class=PlainTextResponse, include_in_schema=False)
async def health() -> str:
    """Answer while the process lives, whatever becomes of Redis and the workers."""
    return "Ok"


class Ready(BaseModel):
    """Whether jobs can be taken: by whom and for which models, or why not."""

    ready: bool
    workers: int | None = None
    models: list[str] | None = None
    unavailable: list[str] | None = None
    reasons: list[str] | None = None


@router.get("/ready", **documents(answer=Ready, errors=Ready, keys=()))
async def ready(request: Request) -> Response:
    """Answer 200 when Redis answers, results can be stored and a live worker can take jobs, else 503 with the reasons.

    What ails the server and keeps no job from running is a warning.
    """
    shared = services(request)
    try:
        workers = await shared.workers()
        warning = (await couriers(shared)).warning
    except QueueUnavailable as err:
        return JSONResponse({"ready": False, "reasons": [err.message]}, status_code=503, headers={"Retry-After": "2"})
    models = _names(workers, "models")
    unavailable = [model for model in _names(workers, "unavailable") if model not in models]
    reasons = []
    if not workers:
        reasons.append("No worker is running (it may still be starting): polyreel worker, or polyreel up.")
    elif not models:
        # Why is for the operator: it names folders and files, and this route asks for no key.
        reasons = [
            f"Model {model} cannot run; `polyreel models` and the worker's log say why." for model in unavailable
        ]
        reasons = reasons or ["Every worker is stopping."]
    storage = await shared.storage_watch.state()
    if storage.trouble:
        reasons.append(storage.trouble)
    if reasons:
        return JSONResponse({"ready": False, "reasons": reasons}, status_code=503, headers={"Retry-After": "2"})
    found = {"ready": True, "workers": len(workers), "models": models, "unavailable": unavailable}
    return JSONResponse(found | ({"warnings": [warning]} if warning else {}))


def _names(workers: list[dict[str, object]], field: str) -> list[str]:
    """Return every model that a heartbeat names in a field, a list or a mapping by name."""
    said = [about.get(field) for about in workers]
    return sorted({str(model) for names in said if isinstance(names, list | dict) for model in names})
