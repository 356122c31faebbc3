"""The conformance command: our own server conforms, and each rule is broken by a server that breaks it."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from polyreel.cli import app
from polyreel.formats import Audio, formats
from polyreel.request import OutputSpec
from server.conformance import Suite, suites
from server.conformance.__main__ import findings_of, main, report
from server.conformance._files import Facts, facts
from server.conformance._rules import Finding, equal
from tests.conftest import KEY, Api
from tests.dialects.huggingface import beat
from tests.server.pictures import png

every_suite = pytest.mark.parametrize("suite", suites().values(), ids=suites())


@dataclass
class Encoder:
    """Plays the worker: black frames, and the real encoders."""

    api: Api
    folder: Path

    async def run(self) -> None:
        while True:
            for job_id in self.api.records.open_ids():
                self.api.finish(job_id, self._files(job_id))
            await anyio.sleep(0.01)

    def _files(self, job_id: str) -> dict[str, bytes]:
        stored = self.api.records.get(job_id)
        assert stored is not None
        request = stored.job.request
        frames = np.zeros((request.num_frames, request.height, request.width, 3), np.uint8)
        return {spec.format: encoded(frames, spec, self.folder) for spec in request.outputs}


def encoded(frames: np.ndarray, spec: OutputSpec, folder: Path, audio: Audio | None = None) -> bytes:
    file = folder / f"encoded.{spec.format}"
    formats()[spec.format].encode(frames, spec, file, audio=audio)
    return file.read_bytes()


@dataclass
class Recorder(httpx2.AsyncBaseTransport):
    """Passes requests on and keeps the answers by method, path and Range, in their order."""

    inner: httpx2.AsyncBaseTransport
    answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = field(default_factory=dict)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self.inner.handle_async_request(request)
        content = await response.aread()
        kept = (response.status_code, dict(response.headers), content)
        self.answers.setdefault(name_of(request), []).append(kept)
        return httpx2.Response(kept[0], headers=kept[1], content=content)


def name_of(request: httpx2.Request) -> str:
    return f"{request.method} {request.url.raw_path.decode()} {request.headers.get('range', '')}"


@asynccontextmanager
async def encoding(api: Api, folder: Path) -> AsyncIterator[Recorder]:
    """Run a worker beside the block."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Encoder(api, folder).run)
        yield Recorder(httpx2.ASGITransport(app=api.app, raise_app_exceptions=False))
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
@every_suite
async def test_our_server_conforms_and_every_rule_can_be_broken(api: Api, suite: Suite, tmp_path: Path) -> None:
    beat(api, "ltx-tiny")  # what a worker says of its device is in Hugging Face's headers
    async with (
        encoding(api, tmp_path) as recorder,
        httpx2.AsyncClient(transport=recorder, base_url="http://api.test") as http,
    ):
        found = await findings_of(suite, http, api.key, wait_s=20, pause_s=0.01)
    assert [finding for finding in found if not finding.conforms] == []
    rules = {finding.rule for finding in found}
    assert len(rules) == len(found), "two rules have one name"
    other = encoded(np.zeros((1, 64, 96, 3), np.uint8), OutputSpec("mp4", 8), tmp_path)
    broken = {finding.rule for break_ in breaks(other) for finding in await replay(suite, recorder, break_)}
    assert rules - broken == set()


async def replay(suite: Suite, recorder: Recorder, break_: Break) -> list[Finding]:
    """Return the rules that a server breaks whose answers are ours, but for what `break_` does to them."""
    left = {name: list(answers) for name, answers in recorder.answers.items()}

    async def answer(request: httpx2.Request) -> httpx2.Response:
        kept = left.get(name_of(request), [(404, {"content-type": "application/json"}, b"{}")])
        status, headers, content = break_(*(kept.pop(0) if len(kept) > 1 else kept[0]))
        return httpx2.Response(status, headers=headers, content=content)

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://api.test") as http:
        found = await findings_of(suite, http, KEY, wait_s=0.2, pause_s=0)
    return [finding for finding in found if not finding.conforms]


Break = Callable[[int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]


def with_status(status: int) -> Break:
    return lambda _, headers, content: (status, headers, content)


def with_json(change: Callable[[Any], Any], *, refusals: bool | None = None) -> Break:
    """Change the JSON of all answers, of refusals, or of the others."""

    def break_(status: int, headers: dict[str, str], content: bytes) -> tuple[int, dict[str, str], bytes]:
        if refusals is not None and refusals is not (status >= 400):
            return status, headers, content
        try:
            changed = json.dumps(change(json.loads(content))).encode()
        except ValueError:
            return status, headers, content
        return status, headers | {"content-length": str(len(changed))}, changed

    return break_


#: Keys that lead a client on: left alone, it comes to rules that it would not reach otherwise.
_WAY = {"status", "id", "number", "task_id", "ok", "url", "video_url", "output", "task", "outputs", "videos", "key"}


def other_kinds(value: Any, kept: frozenset[str] = frozenset()) -> Any:
    """Return JSON with every value of another kind and outside its range, but for those under some keys."""
    if isinstance(value, dict):
        return {name: one if name in kept and not isinstance(one, dict | list) else other_kinds(one, kept)
                for name, one in value.items()} or []  # fmt: skip
    if isinstance(value, list):
        return [other_kinds(one, kept) for one in value] or {}
    return -7 if isinstance(value, str) else "x"


def without_files(status: int, headers: dict[str, str], content: bytes) -> tuple[int, dict[str, str], bytes]:
    """Serve something else in place of files, in no range."""
    if "json" in headers.get("content-type", ""):
        return status, headers, content
    return 200, {"content-type": "text/plain"}, b"not a video"


def lenient(status: int, headers: dict[str, str], content: bytes) -> tuple[int, dict[str, str], bytes]:
    return (200, headers, content) if status >= 400 else (status, headers, content)


def plain(status: int, headers: dict[str, str], content: bytes) -> tuple[int, dict[str, str], bytes]:
    return status, {name: value for name, value in headers.items() if name == "content-length"}, content


def counting() -> Break:
    """Answer each request with other bytes than the last one."""
    count = iter(range(10**6))
    return lambda status, headers, content: (
        status,
        {name: value for name, value in headers.items() if name != "content-length"},
        content + str(next(count)).encode(),
    )


def swapped(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object with lists for its objects, and objects for its lists."""
    return {name: [] if isinstance(one, dict) else {} if isinstance(one, list) else one for name, one in value.items()}


def wandering() -> Break:
    """Name another job and other links once a job has been named."""
    named: list[bool] = []

    def wander(value: Any) -> Any:
        if not named:
            named.extend([True] * ("id" in value or "task_id" in value))
            return value
        return value | {
            "id": 5,
            "task": {**value.get("task", {}), "task_id": "other"},
            "output": ["http://other.test/"],
        }

    return with_json(wander, refusals=False)


def failing_late() -> Break:
    """Answer with errors once a job has succeeded."""
    ended: list[bool] = []

    def break_(status: int, headers: dict[str, str], content: bytes) -> tuple[int, dict[str, str], bytes]:
        is_late = bool(ended)
        if any(word in content for word in (b'"succeeded"', b'"completed"', b'"success"', b"_SUCCEED")):
            ended.append(True)
        return 418 if is_late else status, headers, content

    return break_


def with_video(other: bytes) -> Break:
    """Serve another video in place of each."""
    return lambda status, headers, content: (
        (status, headers | {"content-length": str(len(other))}, other)
        if content[4:8] == b"ftyp"
        else (status, headers, content)
    )


def breaks(other_video: bytes) -> list[Break]:
    """Return every way to break a server, each anew: some of them remember."""
    return [
        with_status(418),
        with_json(lambda _: {}),
        with_json(lambda _: []),
        with_json(other_kinds),
        with_json(lambda value: other_kinds(value, frozenset(_WAY)), refusals=False),
        with_json(
            lambda value: value | {"outputs": {}, "videos": [{}], "output": [], "deleted": False}, refusals=False
        ),
        with_json(swapped, refusals=False),
        with_json(lambda _: {}, refusals=True),
        with_json(lambda value: value | {"message": KEY}, refusals=True),
        wandering(),
        failing_late(),
        with_video(other_video),
        without_files,
        lenient,
        plain,
        counting(),
    ]


@pytest.mark.anyio
async def test_a_server_that_does_not_answer_conforms_in_nothing() -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(refuse), base_url="http://nobody.test") as http:
        for suite in suites().values():
            found = await findings_of(suite, http, KEY, wait_s=0, pause_s=0)
            excused = {"no refusal repeats the key"}
            assert [one.rule for one in found if one.conforms and one.rule not in excused] == []
            assert len(found) >= 5


@pytest.mark.anyio
async def test_a_key_that_a_server_repeats_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    async def checks(server: Any) -> AsyncIterator[Finding]:
        answer = await server.send("GET", "/")
        yield equal("the answer is nothing", answer.at("key"), f"not {server.key}", "nowhere")

    suite = Suite("native", "A server that tells", "", checks)
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json={"key": f"it is {KEY}"}))
    async with httpx2.AsyncClient(transport=transport, base_url="http://tells.test") as http:
        found = await findings_of(suite, http, KEY)
    assert (found[0].got, found[0].expected) == ("it is ***", "not ***")
    for as_json in (True, False):
        report({"native": found}, as_json=as_json)
    assert KEY not in capsys.readouterr().out


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CONFORMANCE_KEY", KEY)
    return


@pytest.mark.usefixtures("_key")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base-url", "http://a.test", "--dialect", "hugingface"], "Did you mean huggingface? Known: huggingface, "),
        (["--base-url", "a.test"], "--base-url must begin with http:// or https://, got a.test"),
        (["--base-url", "http://a.test", "--model", "x"], "--model names a model of one API"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_missing_key_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CONFORMANCE_KEY", raising=False)
    assert main(["--base-url", "http://a.test"]) == 2
    assert "--key is missing" in capsys.readouterr().err


def test_the_command_line_passes_the_key_on_where_nobody_can_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], str]] = []
    monkeypatch.setenv("CONFORMANCE_KEY", "")  # put back after the test
    monkeypatch.setattr(
        "polyreel.cli.os.execv", lambda _, words: started.append((words, os.environ["CONFORMANCE_KEY"]))
    )
    given = ["conformance", "--base-url", "http://a.test", "--key", KEY, "--dialect", "novita", "--dialect", "openai"]
    CliRunner().invoke(app, [*given, "--json"], catch_exceptions=False)
    [(words, key)] = started
    assert words[-6:] == [
        "-m", "server.conformance", "--base-url=http://a.test", "--dialect=novita", "--dialect=openai", "--json",
    ]  # fmt: skip
    assert (key, [word for word in words if KEY in word]) == (KEY, [])


# What files are


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("mp4", Facts("mp4", 5, 96, 64)),
        ("gif", Facts("gif", 5, 96, 64)),
        ("zip", Facts("zip", 5)),
        ("webm", Facts("webm")),
        ("thumbnail", Facts("webp", 1, 96, 64)),
        ("spritesheet", Facts("jpeg", 1, 288, 128)),
    ],
)
def test_the_facts_of_each_format_are_read(format: str, expected: Facts, tmp_path: Path) -> None:
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((5, 64, 96, 3), 40, np.uint8)
    assert facts(encoded(frames, OutputSpec(format, 8), tmp_path)) == expected


def test_a_sound_is_not_taken_for_the_video(tmp_path: Path) -> None:
    sound = Audio(np.zeros((24000, 2), np.float32), 24000)
    content = encoded(np.zeros((5, 64, 96, 3), np.uint8), OutputSpec("mp4", 5), tmp_path, sound)
    assert facts(content) == Facts("mp4", 5, 96, 64)


def animated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"b")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\x00\x00\x00\x20ftyp", b"PK\x03\x04 cut off", png(8, 8)[:20], animated()[:-10],
     b"\x00\x00\x00\x08ftyp" + b"\x00\x00\x00\x01moov\xff" * 3, b"\x00\x00\x00\x08ftyp\x00\x00\x00\x10stsd"],
)  # fmt: skip
def test_a_damaged_file_is_no_crash(content: bytes) -> None:
    assert facts(content).frames == 0
    assert facts(content).kind in ("mp4", "unknown")


def test_a_png_is_a_picture() -> None:
    assert Image.open(io.BytesIO(png(8, 6))).size == (8, 6)
    assert facts(png(8, 6)) == Facts("png", 1, 8, 6)
