"""What a client may write where: nothing of it becomes a path, a header, a key of Redis or a second line of the log."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import structlog

from polyreel.errors import ConfigurationError
from polyreel.logs import configure_logs
from polyreel.profiles import load_settings
from polyreel.settings import Settings
from polyreel.storage.local import LocalStorage
from server.__main__ import configured
from server.dialects import Dialect, dialects
from server.edge import request_id
from tests.conftest import KEY, Api
from tests.dialects.calling import call, call_of, content_of, every_submit, headers_of

pytestmark = pytest.mark.anyio

PROMPTS = {
    "control characters": "a cat\x00\x07\x1b[2J\x1b]0;owned\x07\x7f",
    "line ends": "a cat\r\nSet-Cookie: a=b\r\n\r\n<html>\u2028x",
    "right to left": "a \u202ecat\u2066 \u200f",
    "emoji": "🐈\u200d⬛ 👩🏽\u200d🚀",
    "a path": "../../../../etc/passwd\\..\\..",
    "a script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "a format": "%s%n {0} {prompt} ${jndi:ldap://x} $(id) `id`; rm -rf /",
    "a key of Redis": "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n polyreel:jobs:*",
}

CANARY = "CANARY-7f3a91"

#: Ways to write "up" and "elsewhere"; each leads to the canary where it is believed.
TRAVERSALS = [
    "../canary",
    "../../canary",
    "out/../../canary",
    "%2e%2e/canary",
    "%2e%2e%2fcanary",
    "%252e%252e%252fcanary",
    "..%2fcanary",
    "..%5ccanary",
    "..\\canary",
    "out\\..\\..\\canary",
    "....//canary",
    ".%00./canary",
    "canary%00.mp4",
    "/etc/passwd",
    "//etc/passwd",
    "file:///etc/passwd",
    "\u2025/canary",
    "\u2024\u2024/canary",
    "..\u2215canary",
    "\uff0e\uff0e/canary",
    "..\uff0fcanary",
    "..%c0%afcanary",
    "out/7b1e0000-0000-4000-8000-000000000000/../../../canary",
]


@pytest.fixture
def logged() -> Iterator[Callable[[], list[str]]]:
    """The log as a served process writes it, line by line."""
    stream, before, root = io.StringIO(), sys.stderr, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.stderr = stream
    configure_logs("debug", "serve")
    sys.stderr = before
    yield lambda: stream.getvalue().splitlines(keepends=True)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def with_prompt(dialect: Dialect, prompt: str) -> bytes:
    """Return the dialect's example with another prompt."""

    def replaced(value: Any) -> Any:
        if isinstance(value, list):
            return [replaced(item) for item in value]
        if isinstance(value, dict):
            return {
                name: prompt if name in ("prompt", "negative_prompt") or (name == "inputs" and isinstance(inner, str))
                else replaced(inner)
                for name, inner in value.items()
            }  # fmt: skip
        return value

    return json.dumps(replaced(json.loads(content_of(dialect, KEY)))).encode()


@every_submit
async def test_a_prompt_is_taken_as_it_is_and_named_nowhere(
    api: Api, dialect: Dialect, logged: Callable[[], list[str]]
) -> None:
    for prompt in PROMPTS.values():
        [answer], [stored] = await call(api, dialect, with_prompt(dialect, prompt), headers_of(dialect, KEY))
        assert answer.status_code in (200, 201, 202), answer.text
        assert {span.prompt for span in stored.job.request.prompts} == {prompt}
        for key in stored.job.output_keys:
            assert re.fullmatch(rf"out/{stored.job.id}/{stored.job.id}\.[a-z0-9]+", key)
        assert "set-cookie" not in answer.headers
        assert [name for name, value in answer.headers.items() if not value.isprintable()] == []
    await api.http.get("/v3/nothing")
    lines = logged()
    assert json.loads(lines[-1])["path"] == "/v3/nothing"
    assert [line for line in lines if " cat" in line or "etc" in line or "script" in line] == []


@every_submit
async def test_a_prompt_of_a_hundred_thousand_letters_is_taken_or_its_limit_is_named(
    api: Api, dialect: Dialect
) -> None:
    [answer], jobs = await call(api, dialect, with_prompt(dialect, "a" * 100_000), headers_of(dialect, KEY))
    if jobs:
        assert {span.prompt for span in jobs[0].job.request.prompts} == {"a" * 100_000}
    else:
        assert answer.status_code == 400
        assert re.search(r"at most \d+ characters", answer.text.replace(",", ""))


async def test_a_hostile_path_is_one_line_of_the_log(api: Api, logged: Callable[[], list[str]]) -> None:
    hostile = '/v3/x\r\n{"event": "forged"}\x1b[31m\x9b2J\u202e\u2028'
    await api.http.get(quote(hostile))
    [line] = logged()
    said = json.loads(line)
    assert said["event"] == "request refused"
    assert said["path"] == '/v3/x\\r\\n{"event": "forged"}\\x1b[31m\\x9b2J\\u202e\\u2028'
    assert line.rstrip("\n").isprintable()


# Paths (a canary lies beside the results; whoever reads it has left the folder)


@pytest.fixture
def canary(api: Api) -> Path:
    """A file beside the folder of results, and a link to it within."""
    beside = api.storage.folder.parent / "canary"
    beside.write_text(CANARY)
    (beside.parent / "canary.mp4").write_text(CANARY)
    return beside


async def test_a_link_even_a_signed_one_leads_out_of_no_folder(api: Api, canary: Path) -> None:
    signer = api.app.state.services.signer
    exp = int(time.time()) + 60
    for key in TRAVERSALS:
        for path in (signer.path(key, exp), f"/files/{key}?exp={exp}&sig={signer._signature(key, exp)}"):
            answer = await api.http.get(path)
            assert answer.status_code in (403, 404), path
            assert CANARY not in answer.text
            assert "root:" not in answer.text


async def test_a_symbolic_link_among_the_results_leads_out_of_no_folder(api: Api, canary: Path) -> None:
    job_id = "7b1e0000-0000-4000-8000-000000000000"
    for key, target in ((f"out/{job_id}/{job_id}.mp4", canary), ("out/linked", canary.parent)):
        link = api.storage.folder / key
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    storage = LocalStorage(api.storage.folder)
    for key in (f"out/{job_id}/{job_id}.mp4", "out/linked/canary.mp4"):
        assert storage.size(key) is None
        with pytest.raises(Exception, match="No such file"):
            storage.open(key)


async def test_a_models_or_loras_name_is_looked_up_and_never_opened(api: Api, canary: Path) -> None:
    bearer = {"Authorization": f"Bearer {KEY}"}
    video = {"model_name": "darkSushiMixMix_225D_64380.safetensors", "height": 256, "width": 256, "steps": 8}
    video["prompts"] = [{"frames": 8, "prompt": "x"}]
    for name in TRAVERSALS:
        calls: list[tuple[str, dict[str, Any]]] = [
            (f"/models/{quote(name, safe='')}", {"inputs": "x"}),
            (f"/models/{name}", {"inputs": "x"}),
            ("/polyreel/v1/jobs", {"model": name, "prompt": "x"}),
            ("/v1/videos", {"model": name, "prompt": "x", "seconds": "1"}),
            ("/v3/async/txt2video", {**video, "loras": [{"model_name": name, "strength": 1}]}),
            ("/v3/async/txt2video", {**video, "embeddings": [{"model_name": name}]}),
        ]
        for path, body in calls:
            answer = await api.http.post(path, headers=bearer, json=body)
            assert 400 <= answer.status_code < 500, (path, name)
            assert CANARY not in answer.text
    assert api.records.open_ids() == []


@pytest.mark.parametrize(
    "path", ["/polyreel/v1/jobs/{}", "/v1/videos/{}", "/v1/videos/{}/content", "/v3/async/task-result?task_id={}"]
)
async def test_a_jobs_id_is_one_of_ours_or_unknown(api: Api, canary: Path, path: str) -> None:
    for job_id in [*TRAVERSALS, "*", "polyreel:jobs:alice", "x\r\nDEL polyreel:open", "{}", "a b", "-1"]:
        answer = await api.http.get(path.format(quote(job_id, safe="")), headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code in (400, 404), job_id
        assert CANARY not in answer.text


# Headers


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("4bf92f35-77b3-4da6", "4bf92f35-77b3-4da6"),
        ("A" * 64, "A" * 64),
        ("A" * 65, "A" * 64),
        ("A" * 10_000, "A" * 64),
        ("a b\tc", "abc"),
        ("x\r\nforged: 1", "xforged1"),
        ("../../etc/passwd", "etcpasswd"),
        ("polyreel:jobs:*", "polyreeljobs"),
        ('<script>"', "script"),
        ("é1", "1"),
    ],
)
def test_a_requests_id_is_cut_to_what_a_log_may_hold(sent: str, kept: str) -> None:
    assert request_id(sent) == kept


@pytest.mark.parametrize("sent", ["", "***", "\x00", "é"])
def test_a_request_without_a_usable_id_gets_one(sent: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", request_id(sent))
    assert request_id(sent) != request_id(sent)


async def test_cve_2026_116176_a_clients_request_id_names_nothing_but_a_log_line(
    api: Api, logged: Callable[[], list[str]]
) -> None:
    """vLLM took X-Request-Id for its own: a client could name, and so meddle with, another's request."""
    submitted = [
        await api.http.post(
            "/polyreel/v1/jobs",
            headers={"Authorization": f"Bearer {KEY}", "X-Request-Id": "one-and-the-same"},
            json={"model": "ltx", "prompt": "x"},
        )
        for _ in range(2)
    ]
    assert {answer.headers["x-request-id"] for answer in submitted} == {"one-and-the-same"}
    ids = {answer.json()["id"] for answer in submitted}
    assert len(ids) == 2
    assert "one-and-the-same" not in ids
    await api.http.get("/v3/nothing", headers={"X-Request-Id": 'of-a-client"\x1b[31m' + "a" * 100})
    refused = json.loads(logged()[-1])
    assert refused["request_id"] == "of-a-client31m" + "a" * 50


async def test_every_answer_has_an_id_and_forbids_guessing_its_type(api: Api) -> None:
    for path in ("/health", "/ready", "/metrics", "/v3/nothing", "/files/x", "/nothing"):
        answer = await api.http.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"]), path


async def test_an_answer_to_another_pages_question_has_them_too(api: Api) -> None:
    answer = await api.http.options(
        "/v1/videos", headers={"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    )
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_crash_has_them_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("server.health.services", crash)
    answer = await api.http.get("/ready", headers={"X-Request-Id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
    assert answer.headers["x-content-type-options"] == "nosniff"


@every_submit
async def test_a_header_that_would_end_its_line_reaches_no_answer(api: Api, dialect: Dialect) -> None:
    """Servers refuse line ends in headers before us; another one might let them through."""
    method, path = call_of(dialect)
    for header in ("Idempotency-Key", "X-Polyreel-Priority", "X-Polyreel-Exact", "X-Request-Id", "Origin"):
        headers = {**headers_of(dialect, "wrong-key-of-nobody"), header: "x\r\nSet-Cookie: a=b"}
        answer = await api.http.request(method, path, content=content_of(dialect, "wrong-key"), headers=headers)
        assert answer.status_code in (400, 401, 403)
        assert "set-cookie" not in answer.headers
        assert [name for name, value in answer.headers.items() if not value.isprintable()] == []


@pytest.mark.parametrize(
    ("trusted", "sender", "believed"),
    [
        ((), "127.0.0.1", False),
        (("10.0.0.2",), "127.0.0.1", False),
        (("10.0.0.2",), "10.0.0.3", False),
        (("10.0.0.2",), "10.0.0.2", True),
        (("10.0.0.0/8",), "10.9.9.9", True),
    ],
)
async def test_a_forwarded_scheme_is_believed_of_the_proxies_that_are_named(
    api: Api, settings: Settings, trusted: tuple[str, ...], sender: str, believed: bool
) -> None:
    served = configured(api.app, settings.model_copy(update={"trusted_proxies": trusted}))
    served.load()
    transport = httpx2.ASGITransport(app=served.loaded_app, client=(sender, 40_000))  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://video.example") as http:
        answer = await http.post(
            "/api/v6/video/text2video",
            headers={"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example", "X-Forwarded-Port": "9"},
            json={"key": KEY, "prompt": "x", "instant_response": True},
        )
    scheme = "https" if believed else "http"
    assert answer.json()["future_links"][0].startswith(f"{scheme}://video.example/files/")


@pytest.mark.parametrize("entry", ["*", "proxy.internal", "10.0.0.1/8", "127.1"])
def test_a_wrong_entry_of_the_trusted_proxies_stops_the_start(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYREEL_TRUSTED_PROXIES", f"10.0.0.2,{entry}")
    with pytest.raises(ConfigurationError, match=rf"^trusted_proxies: {re.escape(entry)}: write an address or a net"):
        load_settings()


def test_no_dialect_serves_a_page_that_a_browser_would_run() -> None:
    """All answers are JSON, text or media: no script runs, whatever a prompt says."""
    for dialect in dialects().values():
        for route in dialect.router.routes:
            assert "html" not in str(getattr(route, "response_class", "")).lower()
