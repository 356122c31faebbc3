"""What surrounds every request: a budget for its calls to Redis, and one line in the log when it is refused."""

from __future__ import annotations

import structlog
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyreel.errors import PolyreelError
from server.gate import budget

log = structlog.get_logger()

#: Longest part of a path that is logged, characters.
_LONGEST = 200


class Edge:
    """ASGI middleware. Logs neither query (links are signed there) nor headers, nor anything of the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with budget():
                await self.app(scope, receive, watched)
        finally:
            code = scope.get("state", {}).get("refusal", "")
            if code or status >= 400:
                say = log.warning if status >= 500 else log.info
                say("request refused", method=scope["method"], path=scope["path"][:_LONGEST], status=status, code=code)


def refused(request: Request, err: PolyreelError) -> None:
    """Leave a word for the log about why a request is refused."""
    request.state.refusal = err.code
