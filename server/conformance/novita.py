"""Novita v3: txt2video and task-result, with the exact types on which Novita's official client insists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from server.conformance import Suite
from server.conformance._asking import WRONG_KEY, Answer, Server
from server.conformance._files import facts
from server.conformance._rules import Finding, among, equal, every, kind

_TTV = 'novita.ai/docs "Text to Video"'
_TR = 'novita.ai/docs "Task Result API"'
_QM = 'novita.ai/docs "Query Model"'
_CODES = "novita.ai/docs, error codes"
_CLIENT = "novita-client 0.7.1 raises on any other type"
_PLAYERS = "RFC 9110: players and download managers ask so"

_SUBMIT, _RESULT = "/v3/async/txt2video", "/v3/async/task-result"

#: Of a task result, whatever its state: path to kind.
_TYPES = {
    "task.task_id": "text",
    "task.reason": "string",
    "task.eta": "integer",
    "task.progress_percent": "integer",
    "extra.seed": "string of digits",
    "extra.debug_info": "object",
    "images": "list",
    "videos": "list",
    "audios": "list",
}

_OVER = ("TASK_STATUS_SUCCEED", "TASK_STATUS_FAILED")


def _body(server: Server, **more: Any) -> dict[str, Any]:
    """The smallest video that the page allows. Any: JSON."""
    prompts = [{"frames": 8, "prompt": "a cat"}]
    return {"model_name": server.model, "height": 256, "width": 256, "steps": 1, "prompts": prompts, **more}


async def checks(server: Server) -> AsyncIterator[Finding]:
    """Make the smallest video, and ask for what the page lists beside it."""
    mine = server.bearer()
    async for finding in _refusals(server):
        yield finding
    models = await server.send("GET", "/v3/model?pagination.limit=1", headers=mine)
    yield kind("the models are a list", models.at("models"), "list", _QM)
    yield kind("a model has a name for the API", models.at("models.0.sd_name"), "text", _QM)
    yield kind("the listing has a cursor", models.at("pagination.next_cursor"), "string", _QM)
    submitted = await server.send("POST", _SUBMIT, json=_body(server), headers=mine)
    yield equal("a submit is answered with 200", submitted.status, 200, "both official clients take 202 for an error")
    yield kind("a submit names its task", submitted.at("task_id"), "text", _TTV)
    params = {"task_id": str(submitted.at("task_id"))}
    ended = await server.until(
        lambda: server.send("GET", _RESULT, params=params, headers=mine),
        lambda answer: answer.status != 200 or answer.at("task.status") in _OVER,
    )
    for path, its_kind in _TYPES.items():
        yield kind(f"`{path}` has its type", ended.at(path), its_kind, _CLIENT)
    yield equal("the task succeeds", ended.at("task.status"), "TASK_STATUS_SUCCEED", _TR)
    if ended.at("task.status") != "TASK_STATUS_SUCCEED":
        return
    yield equal("the result is of the task that was asked for", ended.at("task.task_id"), params["task_id"], _TR)
    yield equal("its type is TXT_TO_VIDEO", ended.at("task.task_type"), "TXT_TO_VIDEO", _TR)
    yield equal("a task that succeeded has eta 0", ended.at("task.eta"), 0, _TR)
    yield equal("a task that succeeded is at 100 percent", ended.at("task.progress_percent"), 100, _TR)
    yield kind("a video has an absolute link", ended.at("videos.0.video_url"), "absolute link", _TR)
    yield kind("its time to live is a string", ended.at("videos.0.video_url_ttl"), "string of digits", _TR)
    yield equal("its type is mp4 unless asked otherwise", ended.at("videos.0.video_type"), "mp4", _TTV)
    async for finding in _video(server, ended.at("videos.0.video_url")):
        yield finding


async def _video(server: Server, link: object) -> AsyncIterator[Finding]:
    whole = await server.file(link)
    found = facts(whole.content)
    yield equal("the link needs no key", whole.status, 200, _TR)
    yield equal("the video is an mp4", found.kind, "mp4", _TTV)
    yield equal("it has exactly the frames that were asked for", found.frames, 8, _TTV)
    yield equal("it has exactly the size that was asked for", found.size, "256x256", _TTV)
    head = await server.file(link, "HEAD")
    yield equal("HEAD tells its length", head.header("content-length"), str(len(whole.content)), _PLAYERS)
    part = await server.file(link, Range="bytes=0-9")
    yield equal("a range of it is answered with 206", part.status, 206, _PLAYERS)


async def _refusals(server: Server) -> AsyncIterator[Finding]:
    mine = server.bearer()
    rows: tuple[tuple[str, tuple[int, ...], tuple[str, ...], Answer], ...] = (
        ("no key", (400, 401, 403), ("MISSING_API_KEY", "INVALID_API_KEY"),
         await server.send("POST", _SUBMIT, json=_body(server))),
        ("a wrong key", (401, 403), ("INVALID_API_KEY",),
         await server.send("POST", _SUBMIT, json=_body(server), headers=server.bearer(WRONG_KEY))),
        ("no prompts", (400,), ("INVALID_REQUEST_BODY",), await _submit(server, prompts=[])),
        ("65 frames of one prompt", (400,), ("INVALID_REQUEST_BODY",),
         await _submit(server, prompts=[{"frames": 65, "prompt": "a cat"}])),
        ("a width of 255", (400,), ("INVALID_REQUEST_BODY",), await _submit(server, width=255)),
        ("51 steps", (400,), ("INVALID_REQUEST_BODY",), await _submit(server, steps=51)),
        ("a body that is not JSON", (400,), ("INVALID_REQUEST_BODY",),
         await server.send("POST", _SUBMIT, content=b"{", headers=mine)),
        ("an unknown task", (404,), ("TASK_NOT_FOUND",),
         await server.send("GET", _RESULT, params={"task_id": "00000000-0000-4000-8000-000000000000"}, headers=mine)),
        ("an unknown path", (404,), ("API_NOT_FOUND",), await server.send("GET", "/v3/no-such-api", headers=mine)),
    )  # fmt: skip
    for what, statuses, reasons, answer in rows:
        yield among(f"{what}: HTTP status", answer.status, statuses, _CODES)
        yield among(f"{what}: reason", answer.at("reason"), reasons, _CODES)
    wrong = [what for what, _, _, answer in rows if answer.at("code") != answer.status]
    yield every("the code of a refusal is its HTTP status", wrong, _CODES)
    untold = [what for what, _, _, answer in rows if not isinstance(answer.at("message"), str)]
    yield every("a refusal has a message", untold, _CODES)


async def _submit(server: Server, **more: Any) -> Answer:
    return await server.send("POST", _SUBMIT, json=_body(server, **more), headers=server.bearer())


SUITE = Suite("novita", "Novita v3", "darkSushiMixMix_225D_64380.safetensors", checks)
