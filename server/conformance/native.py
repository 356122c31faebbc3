"""Polyreel's own API, `/polyreel/v1`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from server.conformance import Suite
from server.conformance._asking import WRONG_KEY, Answer, Server
from server.conformance._files import facts
from server.conformance._rules import Finding, equal, every, kind

_DOC = "docs/compatibility/native.md"
_PROBLEM = "RFC 9457"
_OVER = ("succeeded", "failed", "cancelled")
_JOBS = "/polyreel/v1/jobs"
_TYPES = {"id": "text", "number": "positive integer", "model": "text", "progress": "integer", "attempts": "integer"}


def _body(server: Server, **more: Any) -> dict[str, Any]:
    """A small video. Any: JSON."""
    small = {"num_frames": 9, "num_inference_steps": 1, "height": 64, "width": 64, "fps": 8}
    return {"model": server.model, "prompt": "a cat", **small, **more}


async def checks(server: Server) -> AsyncIterator[Finding]:
    """Submit, poll, list, fetch and delete a small video."""
    mine = {"headers": server.bearer()}
    async for finding in _refusals(server):
        yield finding
    submitted = await server.send("POST", _JOBS, json=_body(server), **mine)
    yield equal("a submit is answered with 202", submitted.status, 202, _DOC)
    for key, its_kind in _TYPES.items():
        yield kind(f"`{key}` of a job has its type", submitted.at(key), its_kind, _DOC)
    job = f"{_JOBS}/{submitted.at('id')}"
    ended = await server.until(
        lambda: server.send("GET", job, **mine),
        lambda answer: answer.status != 200 or answer.at("status") in _OVER,
    )
    yield equal("the job succeeds", ended.at("status"), "succeeded", _DOC)
    if ended.at("status") != "succeeded":
        return
    yield equal("a job that succeeded is at 100 percent", ended.at("progress"), 100, _DOC)
    by_number = await server.send("GET", f"{_JOBS}/{submitted.at('number')}", **mine)
    yield equal("its number names the same job", by_number.at("id"), submitted.at("id"), _DOC)
    whole = await server.file(ended.at("outputs.0.url"))
    found = facts(whole.content)
    yield equal("the link needs no key", whole.status, 200, _DOC)
    yield equal("the video is an mp4", found.kind, "mp4", _DOC)
    yield equal("it has exactly the frames that were asked for", found.frames, 9, _DOC)
    yield equal("it has exactly the size that was asked for", found.size, "64x64", _DOC)
    yield equal("its length is the one that the answer says", len(whole.content), ended.at("outputs.0.bytes"), _DOC)
    listed = await server.send("GET", f"{_JOBS}?limit=1", **mine)
    yield equal("the list begins with the newest job", listed.at("jobs.0.id"), submitted.at("id"), _DOC)
    status = await server.send("GET", "/polyreel/v1/status", **mine)
    yield equal("the status is there", status.status, 200, _DOC)
    deleted = await server.send("DELETE", job, **mine)
    yield equal("a job is deleted with 200", deleted.status, 200, _DOC)
    gone = await server.send("GET", job, **mine)
    yield equal("a deleted job is unknown", gone.status, 404, _DOC)
    lost = await server.file(ended.at("outputs.0.url"))
    yield equal("its file is gone", lost.status, 404, _DOC)


async def _refusals(server: Server) -> AsyncIterator[Finding]:
    mine = {"headers": server.bearer()}
    nobody = f"{_JOBS}/00000000-0000-4000-8000-000000000000"
    rows: tuple[tuple[str, int, str, Answer], ...] = (
        ("no key", 401, "missing_key", await server.send("POST", _JOBS, json=_body(server))),
        ("a wrong key", 401, "invalid_key",
         await server.send("POST", _JOBS, json=_body(server), headers=server.bearer(WRONG_KEY))),
        ("no prompt", 400, "invalid_request",
         await server.send("POST", _JOBS, json=_body(server, prompt=None), **mine)),
        ("an unknown model", 404, "unknown_model",
         await server.send("POST", _JOBS, json=_body(server, model="no-such-model"), **mine)),
        ("a million frames", 400, "invalid_request",
         await server.send("POST", _JOBS, json=_body(server, num_frames=1_000_000), **mine)),
        ("a body that is not JSON", 400, "invalid_request", await server.send("POST", _JOBS, content=b"{", **mine)),
        ("an unknown job", 404, "unknown_job", await server.send("GET", nobody, **mine)),
        ("an unknown path", 404, "unknown_route", await server.send("GET", "/polyreel/v1/no-such-noun", **mine)),
    )  # fmt: skip
    for what, status, code, answer in rows:
        yield equal(f"{what}: HTTP status", answer.status, status, _DOC)
        yield equal(f"{what}: code", answer.at("code"), code, _DOC)
    wrong = [what for what, _, _, answer in rows if answer.media_type != "application/problem+json"]
    yield every("a refusal is application/problem+json", wrong, _PROBLEM)
    wrong = [what for what, _, _, answer in rows if answer.at("status") != answer.status]
    yield every("its `status` is the HTTP status", wrong, _PROBLEM)


SUITE = Suite("native", "Polyreel's own API", "wan2.2", checks)
