"""What is served: every entry of the catalogue, which worker has it, and what an administrator tells workers of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from polyreel.commands import ACTIONS, PINNED, Action, Commands
from polyreel.entries import Adapter, Defaults, Limits, ServedModel, Task
from polyreel.errors import InvalidRequest, UnknownRoute
from polyreel.keys import Caller
from server.body import parse_object, read_body, validate
from server.callers import actor_of
from server.credentials import bearer
from server.dialects.native.problems import MEDIA, NoWorker, Problem
from server.live_workers import listed
from server.openapi import documents
from server.services import Services, services

_Exact = ConfigDict(extra="forbid")

router = APIRouter()


class AdapterAnswer(BaseModel):
    """A LoRA or a textual inversion that fits a model; `token` is the word by which prompts call the latter."""

    model_config = _Exact
    name: str
    names: dict[str, list[str]]
    token: str


class ModelAnswer(BaseModel):
    """An entry of the catalogue.

    `state` is "loaded" where a live worker has it in memory, "ready" where one would load it, "unavailable" where none
    can. `runs_pictures` names the entry that runs requests with a picture, null where this one does or none does.
    """

    model_config = _Exact
    name: str
    names: dict[str, list[str]]
    family: str
    licence: str
    tasks: list[Task]
    runs_pictures: str | None
    limits: Limits
    defaults: Defaults
    state: Literal["loaded", "ready", "unavailable"]
    reason: str
    workers: int
    pinned: bool
    allowed: bool
    loras: list[AdapterAnswer]
    embeddings: list[AdapterAnswer]


class ModelsAnswer(BaseModel):
    """All entries, in the operator's order."""

    model_config = _Exact
    models: list[ModelAnswer]


class Target(BaseModel):
    """The body of a command, which may be left out: one worker alone."""

    worker: str | None = None


class CommandAnswer(BaseModel):
    """A command that was given; what became of it, `GET /status` says under the same id."""

    model_config = _Exact
    id: str
    action: Action
    model: str
    workers: list[str]


@router.get("/models", **documents(answer=ModelsAnswer, errors=Problem, error_media=MEDIA))
async def list_models(request: Request) -> Response:
    """List what is served, and whether it can run now."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    said = await shared.workers()
    async with shared.gate.asking():
        pins = await shared.reader.hgetall(PINNED)
    models = [_model(shared, caller, name, said, pins) for name in shared.catalogue.models]
    return JSONResponse(ModelsAnswer(models=models).model_dump(mode="json"))


def _model(
    shared: Services, caller: Caller, name: str, said: list[dict[str, object]], pins: Mapping[Any, Any]
) -> ModelAnswer:
    """Return an entry as a caller sees it. Any: redis-py types keys and values as bytes or text."""
    catalogue, entry = shared.catalogue, shared.catalogue[name]
    serving = [about for about in said if name in listed(about.get("models"))]
    is_loaded = any(name in listed(about.get("loaded")) for about in serving)
    pinned = pins.get(name)
    return ModelAnswer(
        name=name,
        names=_public(entry),
        family=entry.family,
        licence=entry.licence,
        tasks=list(entry.tasks),
        runs_pictures=entry.i2v if "i2v" not in entry.tasks else None,
        limits=entry.limits,
        defaults=entry.defaults,
        state="loaded" if is_loaded else "ready" if serving else "unavailable",
        reason="" if serving else _reason(caller, name, said),
        workers=len(serving),
        pinned=entry.pinned if pinned is None else pinned == "1",
        allowed=not caller.limits.models or name in caller.limits.models,
        loras=[_adapter(key, lora) for key, lora in catalogue.loras.items() if name in lora.models],
        embeddings=[_adapter(key, one) for key, one in catalogue.embeddings.items() if name in one.models],
    )


def _reason(caller: Caller, name: str, said: list[dict[str, object]]) -> str:
    """Return why nobody serves a model. What a worker says of it names folders and files: for administrators."""
    if not said:
        return "No worker is running."
    for about in said:
        troubles = about.get("unavailable")
        if isinstance(troubles, dict) and name in troubles:
            return str(troubles[name]) if "admin" in caller.scopes else "No worker can load it; its operator sees why."
    return "Every worker that serves it is stopping."


def _adapter(name: str, adapter: Adapter) -> AdapterAnswer:
    return AdapterAnswer(name=name, names=_public(adapter), token=adapter.token)


def _public(entry: ServedModel | Adapter) -> dict[str, list[str]]:
    return {dialect: list(names) for dialect, names in entry.names.items()}


@router.post(
    "/models/{name:path}/{action}",
    **documents(
        body=Target, answer=CommandAnswer, errors=Problem, error_media=MEDIA, status=202, is_body_required=False
    ),
)
async def command(request: Request, name: str, action: str) -> Response:
    """Let workers load or unload a model once, or pin it (keep it loaded from now on) or unpin it.

    They hear of it within seconds and do it between two jobs.
    """
    shared = services(request)
    known = next((word for word in ACTIONS if word == action), None)
    if known is None:
        raise UnknownRoute(f"There is nothing at {action[:40]!r} of a model; there is {', '.join(ACTIONS)}.")
    actor = actor_of(request, await shared.caller(bearer(request), "admin"))
    body = await read_body(request, shared.settings.max_body_bytes)
    target = validate(Target, await parse_object(body)) if body.strip() else Target()
    model = shared.catalogue.resolve_any(name)
    if target.worker and known in ("pin", "unpin"):
        raise InvalidRequest(f"worker: {known} is for all workers; leave it out", "worker")

    def give() -> CommandAnswer:
        given = Commands(shared.queue.records.client).give(known, model, target.worker or "", actor)
        return CommandAnswer(id=given.id, action=known, model=model, workers=list(given.workers))

    answer = await shared.gate.in_thread(give)
    if not answer.workers and known in ("load", "unload"):
        raise NoWorker(
            f"No live worker has this name: {target.worker[:200]}." if target.worker else "No worker is live."
        )
    return JSONResponse(answer.model_dump(mode="json"), 202)
