"""Asks a server by plain HTTP, so that no answer, however broken, is an exception: checks judge, they do not crash."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2

from server.conformance._rules import ABSENT

#: A key that no server knows.
WRONG_KEY = "conformance-wrong-key-0123456789"

#: How long one answer may take, seconds: synchronous APIs hold a request for up to five minutes.
_TIMEOUT_S = 320.0

#: Longest answer that is read, bytes.
_LONGEST = 256 * 2**20


@dataclass(frozen=True)
class Answer:
    """What came back.

    Args:
        status: HTTP status; where there was no answer, why.
    """

    status: int | str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def json(self) -> Any:
        """The body as JSON, `ABSENT` for anything else. Any: JSON."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return ABSENT

    def at(self, path: str) -> Any:
        """Return what JSON has at a dotted path, `ABSENT` where there is nothing: `at("videos.0.video_url")`."""
        found = self.json
        for step in path.split("."):
            if isinstance(found, dict) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            else:
                return ABSENT
        return found

    def header(self, name: str) -> Any:
        """Return a header, `ABSENT` where there is none."""
        return self.headers.get(name.lower(), ABSENT)

    @property
    def media_type(self) -> Any:
        """The Content-Type without parameters, `ABSENT` where there is none."""
        found = self.header("content-type")
        return found.partition(";")[0].strip().lower() if isinstance(found, str) else found


@dataclass(frozen=True)
class Server:
    """One server under check.

    Args:
        http: with the server's base URL.
        key: a valid API key; it is sent to the base URL alone.
        model: public name of the model to ask for.
        wait_s: how long a video may take.
        pause_s: between two polls.
    """

    http: httpx2.AsyncClient
    key: str
    model: str
    wait_s: float = 280.0
    pause_s: float = 0.5

    def bearer(self, key: str | None = None) -> dict[str, str]:
        """Return the header for the valid key, or for another one."""
        return {"Authorization": f"Bearer {key or self.key}"}

    async def send(self, method: str, path: str, **request: Any) -> Answer:
        """Send a request. Any: what httpx2 takes; nothing is followed, nothing is sent beside it."""
        try:
            async with self.http.stream(method, path, timeout=_TIMEOUT_S, **request) as response:
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _LONGEST:
                        return Answer(f"an answer of more than {_LONGEST} bytes")
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status_code, headers, bytes(content))
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as err:  # ValueError: a link that is none
            return Answer(f"no answer ({type(err).__name__})")

    async def file(self, link: object, method: str = "GET", **headers: str) -> Answer:
        """Fetch a link that an answer names, without the key; as its client does, redirects are followed."""
        if not isinstance(link, str):
            return Answer("no link")
        return await self.send(method, link, headers=headers, follow_redirects=True)

    async def until(self, ask: Callable[[], Awaitable[Answer]], is_over: Callable[[Answer], bool]) -> Answer:
        """Ask again and again until an answer says that it is over, or the time is up; return the last one."""
        started = time.monotonic()
        while True:
            answer = await ask()
            if is_over(answer) or time.monotonic() - started > self.wait_s:
                return answer
            await anyio.sleep(self.pause_s)
