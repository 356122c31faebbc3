"""OpenAI's Videos API, as its Python package speaks it and self-hosted servers offer it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from server.conformance import Suite
from server.conformance._asking import WRONG_KEY, Answer, Server
from server.conformance._files import facts
from server.conformance._rules import Finding, among, equal, every, kind

_PY = "openai 3.54.0, types/video.py"
_ROUTES = "openai 3.54.0, resources/videos.py"
_ERRORS = "openai 3.54.0, _client.py: a class for each status"
_GUIDE = 'OpenAI guide "Video generation"'
_RANGES = "RFC 9110, section 14: players seek"

_VIDEO = {
    "id": "text",
    "created_at": "positive integer",
    "progress": "integer",
    "model": "text",
    "prompt": "text",
    "seconds": "text",
    "size": "text",
}


async def checks(server: Server) -> AsyncIterator[Finding]:
    """Make the smallest video, from creation to deletion."""
    mine = {"headers": server.bearer()}
    async for finding in _refusals(server):
        yield finding
    models = await server.send("GET", "/v1/models", **mine)
    yield equal("the models are a list object", models.at("object"), "list", "openai 3.54.0, types/model.py")
    body = {"prompt": "a cat", "model": server.model, "size": "256x256", "seconds": "1", "num_inference_steps": 1}
    created = await server.send("POST", "/v1/videos", json=body, **mine)
    yield equal("a creation is answered with 200", created.status, 200, _ROUTES)
    yield equal("a creation is answered with a video object", created.at("object"), "video", _PY)
    for key, its_kind in _VIDEO.items():
        yield kind(f"`{key}` of a video has its type", created.at(key), its_kind, _PY)
    yield among("a new video is queued or in progress", created.at("status"), ("queued", "in_progress"), _PY)
    video = f"/v1/videos/{created.at('id')}"
    ended = await server.until(
        lambda: server.send("GET", video, **mine), lambda answer: answer.at("status") not in ("queued", "in_progress")
    )
    yield equal("the video is completed", ended.at("status"), "completed", _PY)
    if ended.at("status") != "completed":
        return
    yield equal("a completed video's progress is 100", ended.at("progress"), 100, _PY)
    yield kind("a completed video says when", ended.at("completed_at"), "positive integer", _PY)
    async for finding in _content(server, f"{video}/content"):
        yield finding
    listed = await server.send("GET", "/v1/videos?limit=1", **mine)
    yield equal("the list is a list object", listed.at("object"), "list", "openai 3.54.0, pagination.py")
    yield equal("the list begins with the newest video", listed.at("data.0.id"), created.at("id"), _ROUTES)
    yield kind("the list says whether there is more", listed.at("has_more"), "boolean", "openai 3.54.0, pagination.py")
    yield equal("the list names its last id", listed.at("last_id"), created.at("id"), "openai 3.54.0, pagination.py")
    deleted = await server.send("DELETE", video, **mine)
    expected = {"id": created.at("id"), "object": "video.deleted", "deleted": True}
    yield equal("a deletion is confirmed", deleted.json, expected, "openai 3.54.0, types/video_delete_response.py")
    gone = await server.send("GET", video, **mine)
    yield equal("a deleted video is unknown", gone.status, 404, _ROUTES)


async def _content(server: Server, path: str) -> AsyncIterator[Finding]:
    mine = server.bearer()
    whole = await server.send("GET", path, headers=mine, follow_redirects=True)
    yield equal("the content is video/mp4", whole.media_type, "video/mp4", _GUIDE)
    yield equal("the content is an mp4", facts(whole.content).kind, "mp4", _GUIDE)
    yield equal("the video has the size that was asked for", facts(whole.content).size, "256x256", _PY)
    part = await server.send("GET", path, headers=mine | {"Range": "bytes=0-9"}, follow_redirects=True)
    yield equal("a range of the content is answered with 206", part.status, 206, _RANGES)
    yield equal("a range has the bytes that were asked for", part.content, whole.content[:10], _RANGES)
    for variant, expected in (("thumbnail", "webp"), ("spritesheet", "jpeg")):
        picture = await server.send("GET", f"{path}?variant={variant}", headers=mine, follow_redirects=True)
        yield equal(f"the {variant} is a picture", facts(picture.content).kind, expected, _GUIDE)


async def _refusals(server: Server) -> AsyncIterator[Finding]:
    good, mine = {"prompt": "a cat", "model": server.model}, server.bearer()
    nobody = "/v1/videos/video_00000000-0000-4000-8000-000000000000"
    rows: tuple[tuple[str, int, Answer], ...] = (
        ("no key is 401", 401, await server.send("POST", "/v1/videos", json=good)),
        ("a wrong key is 401", 401, await server.send("GET", "/v1/videos", headers=server.bearer(WRONG_KEY))),
        ("no prompt is 400", 400, await server.send("POST", "/v1/videos", json={"model": server.model}, headers=mine)),
        ("a size in words is 400", 400, await _create(server, good | {"size": "large"})),
        ("seconds in words are 400", 400, await _create(server, good | {"seconds": "four"})),
        ("a body that is not JSON is 400", 400, await server.send("POST", "/v1/videos", content=b"{", headers=mine)),
        ("an unknown video is 404", 404, await server.send("GET", nobody, headers=mine)),
        ("an unknown video has no content", 404, await server.send("GET", f"{nobody}/content", headers=mine)),
        ("an unknown video cannot be deleted", 404, await server.send("DELETE", nobody, headers=mine)),
    )
    for rule, status, answer in rows:
        yield equal(rule, answer.status, status, _ERRORS)
    wrong = [rule for rule, _, answer in rows if not _is_envelope(answer.at("error"))]
    yield every("a refusal has OpenAI's envelope", wrong, "OpenAI API reference, error object")


def _is_envelope(error: object) -> bool:
    return isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}


async def _create(server: Server, body: dict[str, str]) -> Answer:
    return await server.send("POST", "/v1/videos", json=body, headers=server.bearer())


SUITE = Suite("openai", "OpenAI Videos", "sora-2", checks)
