"""Hugging Face universal handler: one endpoint that answers with gif, webm and zip in base64."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from typing import Any

from server.conformance import Suite
from server.conformance._asking import WRONG_KEY, Answer, Server
from server.conformance._files import facts, members
from server.conformance._rules import Finding, equal, every, kind

_CARD = 'model card "Video Generation Endpoint API (Universal Handler)"'
_TOOLKIT = "huggingface-inference-toolkit"

_SMALL = {"num_frames": 9, "num_inference_steps": 1, "height": 256, "width": 256, "fps": 8, "seed": 11}


async def checks(server: Server) -> AsyncIterator[Finding]:
    """Make one small video in every format."""
    alive = await server.send("GET", "/")
    yield equal("the endpoint says that it lives, without a key", alive.status, 200, _TOOLKIT)
    async for finding in _refusals(server):
        yield finding
    made = await _ask(server, {"prompt": "a cat", "outputs": ["gif", "webm", "zip"], **_SMALL})
    yield equal("a video is answered with 200", made.status, 200, _CARD)
    yield equal("its answer is ok", made.at("ok"), True, _CARD)
    if made.at("ok") is not True:
        return
    expected = ["gif_base64", "webm_base64", "zip_base64"]
    yield equal("it has every output that was asked for, and no other", _names(made), expected, _CARD)
    yield kind("it says how long it took, in milliseconds", made.at("diagnostics.timing_ms"), "object", _CARD)
    yield equal("it says that it was made from a text", made.at("diagnostics.mode"), "t2v", _CARD)
    for format in ("gif", "webm", "zip"):
        content = _decoded(made.at(f"outputs.{format}_base64"))
        found = facts(content)
        yield equal(f"the {format} is one", found.kind, format, _CARD)
        if format != "webm":  # whose frames only a decoder counts
            yield equal(f"the {format} has exactly the frames that were asked for", found.frames, 9, _CARD)
        if format == "zip":
            yield equal("its members are numbered PNG files", members(content)[:1], ["frame_00000.png"], _CARD)
    gif = await _ask(server, {"prompt": "a cat", **_SMALL})
    yield equal("without outputs there is a gif alone", _names(gif), ["gif_base64"], _CARD)
    size = facts(_decoded(gif.at("outputs.gif_base64"))).size
    yield equal("the gif has the size that was asked for", size, "256x256", _CARD)


async def _refusals(server: Server) -> AsyncIterator[Finding]:
    good = {"inputs": {"prompt": "a cat"}}
    rows: tuple[tuple[str, int, Answer], ...] = (
        ("no key", 401, await server.send("POST", "/", json=good)),
        ("a wrong key", 401, await server.send("POST", "/", json=good, headers=server.bearer(WRONG_KEY))),
        ("no inputs", 400, await server.send("POST", "/", json={}, headers=server.bearer())),
        ("no prompt", 400, await _ask(server, {})),
        ("a height that 32 does not divide", 400, await _ask(server, {"prompt": "a cat", "height": 250})),
        ("an output that is none", 400, await _ask(server, {"prompt": "a cat", "outputs": ["avi"]})),
        ("no outputs", 400, await _ask(server, {"prompt": "a cat", "outputs": []})),
        ("a body that is not JSON", 400, await server.send("POST", "/", content=b"{", headers=server.bearer())),
    )
    for what, status, answer in rows:
        yield equal(f"{what}: HTTP status", answer.status, status, _CARD)
    wrong = [
        what for what, _, answer in rows if answer.at("ok") is not False or not isinstance(answer.at("error"), str)
    ]
    yield every("a refusal is not ok and says why", wrong, _CARD)


async def _ask(server: Server, inputs: dict[str, Any]) -> Answer:
    """Any: JSON."""
    return await server.send("POST", "/", json={"inputs": inputs}, headers=server.bearer())


def _names(answer: Answer) -> object:
    """Return the names of the outputs in an answer."""
    outputs = answer.at("outputs")
    return sorted(outputs) if isinstance(outputs, dict) else outputs


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return b""


SUITE = Suite("universal", "Hugging Face universal handler", "", checks)
