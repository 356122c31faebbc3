"""How the server is doing, what the caller has used, and where everything is."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

import polyreel
from polyreel.formats import formats
from polyreel.keys import Scope
from polyreel.records import OPEN
from server.credentials import bearer
from server.dialects import dialects
from server.dialects.native.problems import MEDIA, Problem
from server.live_workers import listed
from server.openapi import documents
from server.services import Services, services

_Exact = ConfigDict(extra="forbid")

#: When this process began, by the clock that only rises.
_BEGAN = time.monotonic()

router = APIRouter()


class LineAnswer(BaseModel):
    """The waiting jobs of a model, everybody's."""

    model_config = _Exact
    model: str
    waiting: int


class QueueAnswer(BaseModel):
    """All unfinished jobs."""

    model_config = _Exact
    unfinished: int
    running: int
    most: int
    models: list[LineAnswer]


class GpuAnswer(BaseModel):
    """What a worker's GPU does, a few seconds old; null for what it does not say."""

    model_config = ConfigDict(extra="ignore")  # a newer worker may say more
    name: str
    memory_total_bytes: int
    memory_used_bytes: int
    utilization_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class WorkerAnswer(BaseModel):
    """A live worker; `busy` is how many jobs it has. What it was told and cannot do, administrators see alone."""

    model_config = _Exact
    name: str
    device: str
    memory_bytes: int | None
    gpu: GpuAnswer | None
    jobs_per_minute: float
    models: list[str]
    loaded: list[str]
    loading: str
    pinned: list[str]
    busy: int
    commands: list[dict[str, Any]]
    unavailable: dict[str, str]


class StatusAnswer(BaseModel):
    """The server at this moment; `uptime_s` is of the process that answers."""

    model_config = _Exact
    version: str
    uptime_s: float
    queue: QueueAnswer
    workers: list[WorkerAnswer]


class LimitsAnswer(BaseModel):
    """What the key may ask for; null is no limit of its own, and no models are all."""

    model_config = _Exact
    requests_per_minute: int | None
    max_queued: int | None
    max_running: int | None
    gpu_seconds_per_day: float | None
    models: list[str]
    retention_s: float | None


class UsageAnswer(BaseModel):
    """What the caller has used today (UTC), and what it may use."""

    model_config = _Exact
    owner: str
    scopes: list[Scope]
    day: str
    submits: int
    gpu_seconds: float
    reserved_seconds: float
    queued: int
    running: int
    resets_in_s: int
    limits: LimitsAnswer


class DialectAnswer(BaseModel):
    """An API that this server speaks."""

    model_config = _Exact
    name: str
    prefixes: list[str]


class FormatAnswer(BaseModel):
    """A kind of file that can be asked for."""

    model_config = _Exact
    name: str
    media_type: str
    extension: str
    kind: str


class DiscoveryAnswer(BaseModel):
    """Where everything is."""

    model_config = _Exact
    name: str
    version: str
    links: dict[str, str]
    dialects: list[DialectAnswer]
    formats: list[FormatAnswer]


@router.get("/status", **documents(answer=StatusAnswer, errors=Problem, error_media=MEDIA))
async def status(request: Request) -> Response:
    """Tell what waits, who works, and on what."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    said = await shared.workers()
    answer = StatusAnswer(
        version=polyreel.__version__,
        uptime_s=round(time.monotonic() - _BEGAN, 1),
        queue=await _queue(shared),
        workers=[_worker(about, "admin" in caller.scopes) for about in said],
    )
    return JSONResponse(answer.model_dump(mode="json"))


async def _queue(shared: Services) -> QueueAnswer:
    async with shared.gate.asking():
        models = sorted(str(model) for model in await shared.reader.smembers("polyreel:models"))
        async with shared.reader.pipeline(transaction=False) as pipeline:
            for name in (OPEN, "polyreel:leases", *(f"polyreel:ready:{model}" for model in models)):
                pipeline.zcard(name)
            unfinished, running, *waiting = await pipeline.execute()
    lines = [LineAnswer(model=model, waiting=count) for model, count in zip(models, waiting, strict=True)]
    return QueueAnswer(unfinished=unfinished, running=running, most=shared.queue.max_open, models=lines)


def _worker(about: dict[str, object], is_for_admin: bool) -> WorkerAnswer:
    """Return what a worker says of itself, but for whose jobs it has."""
    memory, commands, troubles = about.get("memory_bytes"), about.get("commands"), about.get("unavailable")
    gpu, pace = about.get("gpu"), about.get("jobs_per_minute")  # an older worker says neither
    return WorkerAnswer(
        name=str(about.get("name", "")),
        device=str(about.get("device", "")),
        memory_bytes=memory if isinstance(memory, int) else None,
        gpu=GpuAnswer.model_validate(gpu) if isinstance(gpu, dict) else None,
        jobs_per_minute=float(pace) if isinstance(pace, int | float) else 0.0,
        models=[str(model) for model in listed(about.get("models"))],
        loaded=[str(model) for model in listed(about.get("loaded"))],
        loading=str(about.get("loading") or ""),
        pinned=[str(model) for model in listed(about.get("pinned"))],
        busy=len(listed(about.get("jobs"))),
        commands=[dict(one) for one in commands if isinstance(one, dict)]
        if is_for_admin and isinstance(commands, list)
        else [],
        unavailable={str(k): str(v) for k, v in troubles.items()}
        if is_for_admin and isinstance(troubles, dict)
        else {},
    )


@router.get("/usage", **documents(answer=UsageAnswer, errors=Problem, error_media=MEDIA))
async def usage(request: Request) -> Response:
    """Tell what the caller has used today, and its limits."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    used, limits = await shared.usage(caller), caller.limits
    answer = UsageAnswer(
        owner=caller.owner,
        scopes=sorted(caller.scopes),
        day=used.day,
        submits=used.submits,
        gpu_seconds=used.gpu_seconds,
        reserved_seconds=used.reserved_seconds,
        queued=used.queued,
        running=used.running,
        resets_in_s=used.resets_in_s,
        limits=LimitsAnswer(
            requests_per_minute=limits.requests_per_minute,
            max_queued=limits.max_queued,
            max_running=limits.max_running,
            gpu_seconds_per_day=limits.gpu_seconds_per_day,
            models=list(limits.models),
            retention_s=limits.retention_s,
        ),
    )
    return JSONResponse(answer.model_dump(mode="json"))


async def discovery(request: Request) -> Response:
    """Tell where everything is; without a key."""
    base = f"{services(request).base_url(request)}/polyreel/v1"
    answer = DiscoveryAnswer(
        name="Polyreel",
        version=polyreel.__version__,
        links={name: f"{base}/{name}" for name in ("jobs", "models", "status", "usage")},
        dialects=[DialectAnswer(name=name, prefixes=list(one.prefixes)) for name, one in sorted(dialects().items())],
        formats=[
            FormatAnswer(name=name, media_type=one.media_type, extension=one.extension, kind=one.kind)
            for name, one in formats().items()
        ],
    )
    return JSONResponse(answer.model_dump(mode="json"))


#: How the route is documented; it is the root itself, which a router without a prefix cannot have.
DISCOVERY = documents(answer=DiscoveryAnswer, errors=Problem, error_media=MEDIA, keys=())
