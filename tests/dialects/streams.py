"""Calls a route that streams, and takes its server-sent events as they come; httpx2's transport waits for the end."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from tests.conftest import Api


@dataclass
class Event:
    """One event; Any: JSON."""

    name: str
    data: dict[str, Any]
    id: str
    at: float


@dataclass
class Stream:
    """What one client has received so far.

    Attributes:
        status: 0 before the answer has begun.
        text: the body.
        is_over: whether the server has ended the answer.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    times: list[tuple[int, float]] = field(default_factory=list)
    is_over: bool = False
    leave: anyio.Event = field(default_factory=anyio.Event)

    @property
    def events(self) -> list[Event]:
        found, end = [], 0
        for block in self.text.split("\n\n")[:-1]:
            end += len(block) + 2
            values = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "event" in values:
                at = next(at for length, at in self.times if length >= end)
                found.append(Event(values["event"], json.loads(values["data"]), values.get("id", ""), at))
        return found

    def names(self) -> list[str]:
        return [event.name for event in self.events]

    async def until(self, name: str, timeout_s: float = 5) -> Event:
        """Wait for the first event of a name."""
        with anyio.fail_after(timeout_s):
            while name not in self.names():  # noqa: ASYNC110 what comes is bytes, not events
                await anyio.sleep(0.01)
        return next(event for event in self.events if event.name == name)

    async def over(self, timeout_s: float = 5) -> None:
        """Wait for the end of the answer."""
        with anyio.fail_after(timeout_s):
            while not self.is_over:  # noqa: ASYNC110 likewise
                await anyio.sleep(0.01)


@asynccontextmanager
async def streaming(api: Api, path: str, **headers: str) -> AsyncIterator[Stream]:
    """Open a stream as alice, unless `authorization` says otherwise; leaving the block hangs up."""
    stream = Stream()
    named = {"authorization": f"Bearer {api.key}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": ("127.0.0.1", 1),
        "server": ("api.test", 80),
    }
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await stream.leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            stream.status = message["status"]
            stream.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            stream.text += message.get("body", b"").decode()
            stream.times.append((len(stream.text), time.monotonic()))
            stream.is_over = not message.get("more_body")

    async with anyio.create_task_group() as group:
        group.start_soon(api.app, scope, receive, send)
        try:
            yield stream
        finally:
            stream.leave.set()
            if not stream.is_over:
                with anyio.move_on_after(2, shield=True):
                    while group._tasks:  # noqa: ASYNC110 nothing tells when a task group has emptied
                        await anyio.sleep(0.005)
