"""What surrounds every request: an id, a budget for its calls to Redis, its figures, and one line in the log."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyreel.errors import PolyreelError, RequestTooSlow
from server import replays
from server.gate import budget
from server.http_metrics import HttpMetrics, route_of

log = structlog.get_logger()

#: Longest part of a path that is logged, characters.
_LONGEST = 200

#: Longest id of a request, characters; and what is left out of one that a client sends.
_LONGEST_ID = 64
_NOT_OF_AN_ID = re.compile(r"[^A-Za-z0-9-]+")


#: What comes several times a second while somebody waits: lines of the debug level.
_POLLS = ("GET", "HEAD")


class Edge:
    """ASGI middleware. Logs neither query (links are signed there) nor headers, nor anything of the body."""

    def __init__(self, app: ASGIApp, http_metrics: HttpMetrics) -> None:
        self.app = app
        self._http_metrics = http_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id(Headers(scope=scope).get("x-request-id", ""))
        status, began, seconds = 0, time.monotonic(), 0.0

        async def watched(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.monotonic() - began
                headers = MutableHeaders(scope=message)
                mark(headers, state["request_id"])
                if replay.is_replayed and status < 400:
                    headers[replays.HEADER] = "true"
                if state.get("refusal") == RequestTooSlow.code:
                    headers["Connection"] = "close"  # or the rest would be waited for, to find the next request
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=state["request_id"]):
            try:
                with budget(), replays.noted() as replay:
                    await self.app(scope, receive, watched)
            except Exception:  # a bug, which is answered outside of all middleware
                status = status or 500
                raise
            finally:
                self._http_metrics.note(scope, status, seconds or time.monotonic() - began)
                code = state.get("refusal", "")
                method, ms = scope["method"], round(1000 * (time.monotonic() - began))
                if code or status >= 400:
                    say = log.warning if status >= 500 else log.info
                    path = scope["path"][:_LONGEST]
                    say("request refused", method=method, path=path, status=status, code=code, ms=ms)
                else:
                    say = log.debug if method in _POLLS else log.info
                    event = "request served" if status else "client left"
                    say(event, method=method, route=route_of(scope), status=status, ms=ms)


def request_id(sent: str) -> str:
    """Return the id of a request: the client's own as far as it is letters, digits and hyphens, else a new one.

    It is for logs and answers alone and names nothing here: a client may send another's.
    """
    return _NOT_OF_AN_ID.sub("", sent)[:_LONGEST_ID] or str(uuid.uuid4())


def mark(headers: MutableHeaders, request_id: str) -> None:
    """Write what stands on every answer: the request's id, where a dialect sets none of its own, and no guessing."""
    headers.setdefault("X-Request-Id", request_id)
    headers.setdefault("X-Content-Type-Options", "nosniff")


def refused(request: Request, err: PolyreelError) -> None:
    """Leave a word for the log about why a request is refused."""
    request.state.refusal = err.code
