"""Wires the API: discovers the dialects, gives them their services, and renders every error in its own dialect.

Importing this module needs no configuration and no Redis; `create_app(settings)` does the work.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

import polyreel
from polyreel import tracing
from polyreel.catalogue import OWN
from polyreel.errors import (
    ConfigurationError,
    MethodNotAllowed,
    PolyreelError,
    QueueUnavailable,
    UnknownRoute,
)
from polyreel.formats import formats
from polyreel.keys import ApiKeys
from polyreel.outbound import Outbound
from polyreel.policy import load_judge
from polyreel.queue import Queue
from polyreel.settings import Settings
from polyreel.storage import Storage, connect_storage
from server import files, health, metrics
from server.callers import Callers
from server.dialects import Dialect, dialect_settings, dialects
from server.edge import Edge, mark, refused
from server.gate import Gate
from server.http_metrics import HttpMetrics
from server.joining import Joined, Joining
from server.live_workers import LiveWorkers
from server.openapi import add_schemes
from server.page import add_page
from server.published import Published
from server.reader import connect_reader
from server.services import Services
from server.storage_watch import StorageWatch
from server.waiters import Waiters
from server.waiting import Waiting

log = structlog.get_logger()

#: What is asked every few seconds by machines.
_PROBES = ("/health", "/ready", "/metrics")

#: FastAPI's pages load their scripts from a CDN: blank on a closed network, and foreign code on an open one.
_NO_DOCS: dict[str, Any] = {"docs_url": None, "redoc_url": None}

#: Group of the routes that belong to no dialect, in the API reference.
SERVER_TAG = "Server"


def create_app(settings: Settings, keys: ApiKeys, *, storage: Storage | None = None) -> FastAPI:
    """Return the API.

    Args:
        settings: with `redis_url` set; Redis need not answer yet.
        keys: who may use it.
        storage: instead of the one that the settings name (tests).

    Raises:
        ConfigurationError: a dialect's section is wrong, no Redis is named, or this process does not fit the others
            (`server.joining`).
    """
    if settings.redis_url is None:
        raise ConfigurationError(
            "redis_url: the API needs REDIS_URL; `polyreel up` starts an embedded queue by itself."
        )
    url = settings.redis_url.get_secret_value()
    gate = Gate()
    queue = Queue(
        url,
        retention_s=settings.retention_s,
        max_open=settings.max_queued,
        max_open_of_owner=settings.max_queued_per_key,
        job_timeout_s=settings.job_timeout_s,
        lease_s=settings.lease_s,
        rule=settings.scheduling.rule(),
        patient=False,
    )
    reader, rule = connect_reader(url), settings.scheduling.rule()
    results = storage or connect_storage(settings.storage_url, settings.s3)
    joining = Joining(settings, None if storage else results)
    try:
        joining.join()
    except QueueUnavailable as err:
        log.warning("the secrets of this server are not known until Redis answers", reason=err.message)
    shared = Services(
        settings=settings,
        catalogue=settings.catalogue,
        callers=Callers(keys, reader, gate, joining),
        storage=results,
        joining=joining,
        queue=queue,
        reader=reader,
        waiters=Waiters(queue.records.client, gate, settings.retention_s),
        waiting=Waiting(reader, gate, settings.catalogue, rule, settings.resident_models),
        live_workers=LiveWorkers(reader, gate),
        gate=gate,
        outbound=Outbound(settings.webhook_allow, settings.outbound_http),
        published=Published(settings.retention_s),
        storage_watch=StorageWatch(results, settings.state_dir, settings.min_free_mb * 1e6),
        judge=load_judge(settings.content_policy),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await shared.reader.aclose()

    app = FastAPI(
        title="Polyreel",
        version=polyreel.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=_telemetry(),
        **_NO_DOCS,
    )
    app.state.services = shared
    formats()  # imported now, and not by the first request
    app.state.dialect_settings = dialect_settings(settings, shared.catalogue)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[
                "x-compute-type",
                "x-compute-time",
                "x-request-id",
                "Retry-After",
                "Location",
                "Idempotent-Replayed",
            ],
        )
    app.state.http_metrics = HttpMetrics()
    app.add_middleware(Joined, joining=joining)
    app.add_middleware(Edge, http_metrics=app.state.http_metrics)  # last, so around the others
    app.include_router(health.router, tags=[SERVER_TAG])
    app.include_router(files.router, tags=[SERVER_TAG])
    app.include_router(metrics.router, tags=[SERVER_TAG])
    if settings.web_page:
        add_page(app, settings)
    for dialect in dialects().values():
        app.include_router(dialect.router, tags=[dialect.title or dialect.name])
    app.openapi_tags = _tags()
    add_schemes(app)
    app.add_exception_handler(PolyreelError, _render)
    app.add_exception_handler(HTTPException, _render_framework_error)
    app.add_exception_handler(ClientDisconnect, _render_nothing)
    app.add_exception_handler(Exception, _render_crash)
    return app


def _telemetry() -> TelemetryConfig:
    """Return what FastAPI is to trace: each request, and nothing of what it carried.

    Its own figures stand in `/metrics`; its log of failed requests would quote exceptions. Probes are no traces.
    """
    return {
        "tracer_provider": tracing.provider(),
        "tracing": tracing.provider() is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope["path"] in _PROBES,
    }


def dialect_of(path: str) -> Dialect | None:
    """Return the dialect whose prefix matches `path` best, or None."""
    matches = [
        (len(prefix), dialect)
        for dialect in dialects().values()
        for prefix in dialect.prefixes
        if path.startswith(prefix)
    ]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def _tags() -> list[dict[str, str]]:
    """Return the groups of the API reference, our own API first."""
    own_first = sorted(dialects().values(), key=lambda dialect: (dialect.name != OWN, dialect.title))
    tags = [{"name": dialect.title or dialect.name, "description": dialect.about} for dialect in own_first]
    return [*tags, {"name": SERVER_TAG, "description": "How the server is, and the files that links lead to."}]


async def _render(request: Request, err: Exception) -> Response:
    assert isinstance(err, PolyreelError)  # noqa: S101 Starlette calls a handler only for its own class
    refused(request, err)
    taken_by = getattr(request.state, "dialect", "")  # by `answer_as`
    dialect = dialects()[taken_by] if taken_by else dialect_of(request.url.path)
    if dialect is None:
        status = {UnknownRoute: 404, MethodNotAllowed: 405, QueueUnavailable: 503}.get(type(err), 500)
        headers = {"Retry-After": "5"} if status == 503 else {}
        return JSONResponse({"error": err.message}, status, headers)
    return dialect.render_error(err, request.app.state.dialect_settings[dialect.name])


async def _render_framework_error(request: Request, err: Exception) -> Response:
    """Starlette's own 404 and 405 in the dialect of their path."""
    assert isinstance(err, HTTPException)  # noqa: S101
    if err.status_code == 405:
        allowed = _methods_of(request) or "another method"
        response = await _render(
            request, MethodNotAllowed(f"{request.method} is not allowed for {request.url.path}; use {allowed}.")
        )
        response.headers["Allow"] = allowed
        return response
    return await _render(request, UnknownRoute(f"There is nothing at {request.method} {request.url.path[:200]}."))


async def _render_nothing(_request: Request, _err: Exception) -> Response:
    """The client hung up while it sent its body or waited: there is nobody to answer, and nothing went wrong here.

    499 is what proxies log for it; it is in no standard, and nobody receives it.
    """
    return Response(status_code=499)


async def _render_crash(request: Request, err: Exception) -> Response:
    """A bug: the client learns that it happened, the log says where. Starlette logs the traceback by re-raising."""
    name = request.state.request_id
    log.error("request crashed", path=request.url.path, error=type(err).__name__, request_id=name)
    response = await _render(
        request, PolyreelError("The server made a mistake with this request; its operator has a log of it.")
    )
    mark(response.headers, name)  # Starlette answers a crash outside all middleware
    return response


def _methods_of(request: Request) -> str:
    """Return every method of a path; Starlette's own Allow names those of the first route that has it."""
    return ", ".join(
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    )
