"""Lets the links that clients send lead to answers of ours; no socket is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tests.conftest import Api
from tests.core.recorder import Recorder, outbound

#: A public link to a picture, as far as its guard can tell.
LINK = "https://pictures.example/cat.png"


def answering(api: Api, status: str, content: bytes, names: Mapping[str, list[str]] | None = None) -> Recorder:
    """Let every link lead to this answer.

    Args:
        status: with its reason, such as "200 OK".
        names: addresses of each host; any other has a public one.
    """
    recorder = Recorder(f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    api.app.state.services = replace(api.app.state.services, outbound=outbound(recorder, names))
    return recorder
