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
    assert lines == [{"event": "request refused", "log_level": "info", "method": method, **line}]
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
    assert [(line["log_level"], line["code"]) for line in lines] == [("warning", "still_running")]


async def test_a_request_that_is_served_is_no_line(api: Api) -> None:
    with capture_logs() as lines:
        assert (await api.http.get("/health")).status_code == 200
        assert (await api.http.get("/v3/user", headers={"Authorization": f"Bearer {KEY}"})).status_code == 200
    assert lines == []
