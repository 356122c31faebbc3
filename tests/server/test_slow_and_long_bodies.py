"""Bodies that are too long or never end: refused in the dialect's own shape, before they cost anything."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import anyio
import pytest

import server.body
from server.dialects import Dialect, dialects
from tests.conftest import KEY, Api
from tests.dialects.calling import call_of, content_of, every_submit, headers_of

pytestmark = pytest.mark.anyio

MEGABYTE = 2**20


class Sender:
    """A client whose body comes piece by piece; `sent` counts the pieces that were taken."""

    def __init__(self, pieces: AsyncIterator[bytes], **headers: str) -> None:
        self.sent = 0
        self.answer: dict[str, str] = {}
        self.status = 0
        self.body = b""
        self._pieces = pieces
        self._headers = headers

    async def post(self, api: Api, dialect: Dialect) -> None:
        method, path = call_of(dialect)
        headers = {**headers_of(dialect, KEY), **self._headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("api.test", 80),
        }
        await api.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, object]:
        piece = await anext(self._pieces)
        self.sent += 1
        return {"type": "http.request", "body": piece, "more_body": True}

    async def _send(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.answer = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")


async def megabytes(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"a" * MEGABYTE


async def drips(content: bytes) -> AsyncIterator[bytes]:
    for byte in content * 1000:
        await anyio.sleep(0.02)
        yield bytes([byte])


@every_submit
async def test_a_hundred_megabytes_that_are_announced_are_refused_unread(api: Api, dialect: Dialect) -> None:
    sender = Sender(megabytes(100), **{"Content-Length": str(100 * MEGABYTE)})
    began = time.monotonic()
    await sender.post(api, dialect)
    assert (sender.status, sender.sent) == (413, 0)
    assert time.monotonic() - began < 0.5
    assert_is_its_own_error(dialect, sender)


@every_submit
async def test_a_hundred_megabytes_that_are_not_announced_are_refused_at_the_limit(api: Api, dialect: Dialect) -> None:
    sender = Sender(megabytes(100), **{"Transfer-Encoding": "chunked"})
    began = time.monotonic()
    await sender.post(api, dialect)
    assert sender.status == 413
    assert sender.sent <= 21  # 20 MiB are read where a body may hold a picture
    assert time.monotonic() - began < 0.5
    assert_is_its_own_error(dialect, sender)


@every_submit
async def test_a_body_that_drips_is_left_after_its_time(
    api: Api, dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.body.BODY_S == 20.0
    monkeypatch.setattr(server.body, "BODY_S", 0.2)
    sender = Sender(drips(content_of(dialect, KEY)))
    with anyio.fail_after(5):
        await sender.post(api, dialect)
    assert sender.status == 400
    assert b"The request body did not come in time" in sender.body
    assert sender.answer["connection"] == "close"
    assert_is_its_own_error(dialect, sender)
    assert api.records.open_ids() == []


async def test_a_long_body_that_comes_at_a_phones_pace_is_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.body, "BODY_S", 0.1)

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(6):
            await anyio.sleep(0.05)
            yield b"a" * 65536  # a second more for each
        yield b"b" * 30 * MEGABYTE

    sender = Sender(slowly())
    await sender.post(api, dialects()["native"])
    assert (sender.status, sender.sent) == (413, 7)


def assert_is_its_own_error(dialect: Dialect, sender: Sender) -> None:
    """Assert JSON that is not the framework's, and a length that is announced."""
    assert sender.answer["content-type"] in ("application/json", "application/problem+json")
    assert set(json.loads(sender.body)) - {"detail"}
    assert sender.answer["x-content-type-options"] == "nosniff"
    assert KEY.encode() not in sender.body
