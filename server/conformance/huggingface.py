"""Hugging Face Inference, text to video: the answer is the video."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from server.conformance import Suite
from server.conformance._asking import WRONG_KEY, Answer, Server
from server.conformance._files import facts
from server.conformance._rules import Finding, among, equal, every, holds, kind

_T2V = 'Hugging Face docs, Inference Providers, "Text to Video"'
_PARAMETERS = 'Hugging Face docs, Inference API, "Parameters"'
_SIZE = 'Hugging Face docs, "Image to Video", target_size'
_CLIENTS = "huggingface_hub 2.4.0 shows `error`, a string"
_ROUTES = "api-inference-community, routes.py"

_SMALL = {"num_frames": 9, "num_inference_steps": 1, "seed": 11, "target_size": {"width": 256, "height": 256}}


async def checks(server: Server) -> AsyncIterator[Finding]:
    """Make one small video, and the same again from the cache."""
    async for finding in _refusals(server):
        yield finding
    info = await server.send("GET", _path(server), headers=server.bearer())
    yield equal("a model that is served is found", info.status, 200, "huggingface_hub 2.4.0, InferenceClient")
    body = {"inputs": "a cat", "parameters": _SMALL}
    made = await server.send("POST", _path(server), json=body, headers=server.bearer())
    yield equal("a video is answered with 200", made.status, 200, _T2V)
    if made.status != 200:
        return
    found = facts(made.content)
    is_video = str(made.media_type).startswith("video/")
    yield holds("the answer is a video by its type", is_video, "video/…", made.media_type, _T2V)
    yield among("the answer is a video by its bytes", found.kind, ("mp4", "webm"), _T2V)
    if found.kind == "mp4":
        yield equal("it has exactly the frames that were asked for", found.frames, 9, _T2V)
        yield equal("it has the size that was asked for", found.size, "256x256", _SIZE)
    yield kind("it says how long it took", made.header("x-compute-time"), "decimal", _ROUTES)
    yield kind("it says on what", made.header("x-compute-type"), "text", _ROUTES)
    again = await server.send("POST", _path(server), json=body, headers=server.bearer())
    is_same = bool(made.content) and again.content == made.content
    got = "the same bytes" if is_same else f"{again.status} with {len(again.content)} other bytes"
    yield holds("the same request is answered with the same video", is_same, "the same bytes", got, _PARAMETERS)


async def _refusals(server: Server) -> AsyncIterator[Finding]:
    colon = {"Authorization": f"Bearer: {server.key}"}
    rows: tuple[tuple[str, int, Answer], ...] = (
        ("no key", 401, await server.send("POST", _path(server), json={"inputs": "a cat"})),
        ("a wrong key", 401,
         await server.send("POST", _path(server), json={"inputs": "a cat"}, headers=server.bearer(WRONG_KEY))),
        ("no inputs", 400, await _ask(server, {"parameters": _SMALL})),
        ("inputs that are a number", 400, await _ask(server, {"inputs": 7})),
        ("a number of frames in words", 400, await _ask(server, {"inputs": "a", "parameters": {"num_frames": "ten"}})),
        ("a body that is not JSON", 400,
         await server.send("POST", _path(server), content=b"{", headers=server.bearer())),
        ("the header as the page writes it, `Bearer: KEY`, with no inputs", 400,
         await server.send("POST", _path(server), json={}, headers=colon)),
        ("an unknown model", 404,
         await server.send("POST", "/models/conformance/no-such-model", json={"inputs": "a"}, headers=server.bearer())),
    )  # fmt: skip
    for what, status, answer in rows:
        yield equal(f"{what}: HTTP status", answer.status, status, _T2V)
    wrong = [what for what, _, answer in rows if not isinstance(answer.at("error"), str)]
    yield every("a refusal says why in `error`, a string", wrong, _CLIENTS)


def _path(server: Server) -> str:
    return f"/models/{server.model}"


async def _ask(server: Server, body: dict[str, Any]) -> Answer:
    """Any: JSON."""
    return await server.send("POST", _path(server), json=body, headers=server.bearer())


SUITE = Suite("huggingface", "Hugging Face Inference", "Lightricks/LTX-Video", checks)
