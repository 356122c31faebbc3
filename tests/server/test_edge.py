"""The log of a refused request: one line that says what and why, and nothing that was sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.conftest import KEY, Api
from tests.dialects.calling import SECTIONS

pytestmark = pytest.mark.anyio

SECRETS = (KEY, "a very private prompt", "wrong-key-of-somebody")
LTX = "/models/Lightricks/LTX-Video"

REFUSED: dict[str, tuple[str, str, dict[str, str], dict[str, Any] | None, dict[str, Any]]] = {
    "a wrong key": (
        "POST",
        LTX,
        {"Authorization": "Bearer wrong-key-of-somebody"},
        {"inputs": "a very private prompt"},
        {"path": LTX, "status": 401, "code": "invalid_key"},
    ),
    "a wrong field": (
        "POST",
        "/api/v6/video/text2video",
        {},
        {"key": KEY, "prompt": "a very private prompt", "fps": 1000},
        {"path": "/api/v6/video/text2video", "status": 400, "code": "invalid_request"},
    ),
    "an unknown path": (
        "GET",
        f"/v3/nothing?key={KEY}",
        {},
        None,
        {"path": "/v3/nothing", "status": 404, "code": "unknown_route"},
    ),
    "a long path": (
        "GET",
        "/v3/" + "x" * 1000,
        {},
        None,
        {"path": "/v3/" + "x" * 196, "status": 404, "code": "unknown_route"},
    ),
    "a link that is altered": (
        "GET",
        "/files/out/a/a.mp4?exp=1&sig=secret",
        {},
        None,
        {"path": "/files/out/a/a.mp4", "status": 403, "code": ""},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refused_request_is_one_line_without_anything_that_was_sent(api: Api, case: str) -> None:
    method, path, headers, body, line = REFUSED[case]
    with capture_logs() as lines:
        await api.http.request(method, path, json=body, headers=headers)
    [said] = lines
    ms = said.pop("ms")
    assert said == {"event": "request refused", "log_level": "info", "method": method, **line}
    assert 0 <= ms < 60_000
    assert not any(secret in json.dumps(lines) for secret in SECRETS)


async def test_a_refusal_in_a_200_is_one_too(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects=SECTIONS | {"modelslab": {"error_http": "200"}})
    with capture_logs() as lines:
        assert (await api.http.post("/api/v6/video/text2video", json={})).status_code == 200
    assert [(line["status"], line["code"]) for line in lines] == [(200, "missing_key")]


async def test_what_is_our_fault_is_a_warning(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"huggingface": {"wait_s": 0}})
    with capture_logs() as lines:
        answer = await api.http.post(LTX, json={"inputs": "a cat"}, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 504
    refused = [line for line in lines if line["event"] == "request refused"]
    assert [(line["log_level"], line["code"]) for line in refused] == [("warning", "still_running")]


async def test_polls_are_lines_of_the_debug_level_and_what_changes_something_is_more(api: Api) -> None:
    body = {"key": KEY, "prompt": "a very private prompt", "model_id": "ltx"}
    with capture_logs() as lines:
        assert (await api.http.get("/v3/user", headers={"Authorization": f"Bearer {KEY}"})).status_code == 200
        assert (await api.http.post("/api/v6/video/text2video", json=body)).status_code == 200
    job = api.newest().job
    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("debug", "request served"),
        ("info", "job submitted"),
        ("info", "request served"),
    ]
    assert (lines[0]["method"], lines[0]["route"], lines[0]["status"]) == ("GET", "/v3/user", 200)
    assert (lines[1]["job_id"], lines[1]["model"], lines[1]["dialect"]) == (job.id, "ltx-tiny", "modelslab")
    assert "private" not in json.dumps(lines)


async def test_a_job_knows_the_request_that_submitted_it(api: Api) -> None:
    body = {"key": KEY, "prompt": "a cat", "model_id": "ltx"}
    await api.http.post("/api/v6/video/text2video", json=body, headers={"X-Request-Id": "mine-1;evil"})
    assert api.newest().job.trace == {"request_id": "mine-1evil"}


async def test_a_prompt_is_logged_where_the_operator_wants_it(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 0}}, log_prompts=True)
    body = {"key": KEY, "prompt": "a very private prompt", "model_id": "ltx"}
    with capture_logs() as lines:
        assert (await api.http.post("/api/v6/video/text2video", json=body)).status_code == 200
    assert [line.get("prompt") for line in lines] == ["a very private prompt", None]
