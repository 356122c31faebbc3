"""ModelsLab v6: text2video and fetch, with the polling loop of its own documents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from server.conformance import Suite
from server.conformance._asking import WRONG_KEY, Answer, Server
from server.conformance._files import facts
from server.conformance._rules import Finding, among, equal, every, kind

_OA = 'docs.modelslab.com "Text to Video", OpenAPI'
_OLD = 'docs.modelslab.com "Text to Video Endpoint"'
_CODES = "docs.modelslab.com, error codes"
_PLAYERS = "RFC 9110: players and download managers ask so"

_SUBMIT, _FETCH = "/api/v6/video/text2video", "/api/v6/video/fetch"


def _body(server: Server, **more: Any) -> dict[str, Any]:
    """A small video within the documented ranges. Any: JSON."""
    small = {"num_frames": 9, "num_inference_steps": 1, "height": 256, "width": 256, "fps": 8}
    return {"key": server.key, "prompt": "a cat", "model_id": server.model, "output_type": "mp4", **small, **more}


async def checks(server: Server) -> AsyncIterator[Finding]:
    """Make a small video as the documented loop does, then one whose links are wanted at once."""
    async for finding in _refusals(server):
        yield finding
    submitted = await server.send("POST", _SUBMIT, json=_body(server, instant_response=True))
    yield equal("a submit is answered with 200", submitted.status, 200, _OA)
    yield among("its status is processing or success", submitted.at("status"), ("processing", "success"), _OA)
    yield kind("its id is an integer", submitted.at("id"), "positive integer", _OA)
    yield kind("its eta is an integer", submitted.at("eta"), "integer", _OA)
    yield kind("it has future links", submitted.at("future_links.0"), "absolute link", _OA)
    yield kind("it echoes what runs", submitted.at("meta"), "object", _OA)
    if submitted.at("status") == "processing":
        yield kind("it says where to ask next", submitted.at("fetch_result"), "absolute link", _OA)
        yield equal("a video in the making has no output yet", submitted.at("output"), [], _OLD)
    path = f"{_FETCH}/{submitted.at('id')}"
    ended = await server.until(
        lambda: server.send("POST", path, json={"key": server.key}), lambda answer: answer.at("status") != "processing"
    )
    yield equal("a fetch is answered with 200", ended.status, 200, _OA)
    yield equal("the video succeeds", ended.at("status"), "success", _OA)
    if ended.at("status") != "success":
        return
    yield equal("the id stays the same", ended.at("id"), submitted.at("id"), _OA)
    yield kind("the time that it took is a number", ended.at("generationTime"), "number", _OA)
    output = ended.at("output")
    yield equal("the output is one link", len(output) if isinstance(output, list) else output, 1, _OA)
    yield equal("the output is where the future links led", ended.at("output.0"), submitted.at("future_links.0"), _OA)
    yield kind("the proxy links are there too", ended.at("proxy_links.0"), "absolute link", _OA)
    async for finding in _video(server, ended.at("output.0")):
        yield finding


async def _video(server: Server, link: object) -> AsyncIterator[Finding]:
    whole = await server.file(link)
    found = facts(whole.content)
    yield equal("the link needs no key", whole.status, 200, _OA)
    yield equal("the video is an mp4, as output_type said", found.kind, "mp4", _OA)
    yield equal("it has exactly the frames that were asked for", found.frames, 9, _OA)
    yield equal("it has exactly the size that was asked for", found.size, "256x256", _OA)
    head = await server.file(link, "HEAD")
    yield equal("HEAD tells its length", head.header("content-length"), str(len(whole.content)), _PLAYERS)
    part = await server.file(link, Range="bytes=0-9")
    yield equal("a range of it is answered with 206", part.status, 206, _PLAYERS)
    yield equal("a range has the bytes that were asked for", part.content, whole.content[:10], _PLAYERS)


async def _refusals(server: Server) -> AsyncIterator[Finding]:
    anonymous = {name: value for name, value in _body(server).items() if name != "key"}
    rows: tuple[tuple[str, int, Answer], ...] = (
        ("no key", 401, await server.send("POST", _SUBMIT, json=anonymous)),
        ("a wrong key", 401, await _submit(server, key=WRONG_KEY)),
        ("no prompt", 400, await _submit(server, prompt=None)),
        ("26 frames", 400, await _submit(server, num_frames=26)),
        ("a width of 513", 400, await _submit(server, width=513)),
        ("51 steps", 400, await _submit(server, num_inference_steps=51)),
        ("17 frames per second", 400, await _submit(server, fps=17)),
        ("an output type that is none", 400, await _submit(server, output_type="avi")),
        ("a body that is not JSON", 400, await server.send("POST", _SUBMIT, content=b"{")),
    )
    for what, status, answer in rows:
        yield equal(f"{what}: HTTP status", answer.status, status, _CODES)
    silent = [what for what, _, answer in rows if answer.at("status") != "error"]
    yield every("a refused request has the status error", silent, _CODES)
    untold = [what for what, _, answer in rows if not isinstance(answer.at("message"), str)]
    yield every("a refusal has a message", untold, _CODES)
    leaky = [what for what, _, answer in rows if server.key.encode() in answer.content]
    yield every("no refusal repeats the key", leaky, "it is a secret")
    unknown = await server.send("POST", f"{_FETCH}/999999999999999", json={"key": server.key})
    yield equal("an unknown id: HTTP status", unknown.status, 404, _CODES)
    yield equal("an unknown id ends the documented loop", unknown.at("status"), "failed", _OA)


async def _submit(server: Server, **more: Any) -> Answer:
    return await server.send("POST", _SUBMIT, json=_body(server, **more))


SUITE = Suite("modelslab", "ModelsLab v6", "wan2.2", checks)
