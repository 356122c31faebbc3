"""ModelsLab's error bodies: every documented error, and those that the documents forgot."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from server.services import Services
from tests.conftest import Api
from tests.dialects.golden import Row, golden
from tests.dialects.modelslab import FETCH, SUBMIT, body


@pytest.mark.anyio
@pytest.mark.parametrize("row", golden("modelslab/errors", refused=True), ids=str)
async def test_a_documented_error_is_answered_as_documented(api: Api, row: Row) -> None:
    content = str(row.wire.get("raw") or json.dumps(row.wire["body"])).replace("{key}", api.key)
    response = await api.http.post(row.wire["path"], content=content)
    assert (response.status_code, response.json()) == (row.answer["http"], row.answer["body"])
    assert response.json()["message"] == row.error
    assert api.records.open_ids() == []


@pytest.mark.anyio
async def test_error_http_200_hides_every_status(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"modelslab": {"error_http": "200"}})
    calls = [
        (SUBMIT, {"prompt": "x"}, {"status": "error", "message": "API key required"}),
        (SUBMIT, {"key": api.key}, {"status": "error", "message": "prompt is required"}),
        (
            f"{FETCH}/1",
            {"key": api.key},
            {"status": "failed", "message": "Request not found", "id": "", "output": []},
        ),
    ]
    for path, sent, expected in calls:
        response = await api.http.post(path, json=sent)
        assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.anyio
async def test_too_many_jobs_of_one_key_say_which_limit_it_was_and_when_to_come_back(
    make_api: Callable[..., Api],
) -> None:
    sections = {"modelslab": {"hold_s": 0}, "universal": {"endpoint_model": "ltx"}}
    api = make_api(max_queued_per_key=1, dialects=sections)
    assert (await api.http.post(SUBMIT, json=body(api))).status_code == 200
    response = await api.http.post(SUBMIT, json=body(api))
    assert (response.status_code, response.headers["Retry-After"]) == (429, "30")
    assert response.json() == {
        "status": "error",
        "message": "Rate limit exceeded. You have 1 unfinished jobs, which is all that this server lets one key have. "
        "Wait for one to end, or cancel one.",
        "retry_after": 30,
    }


@pytest.mark.anyio
async def test_a_bug_is_a_500_that_tells_nothing_of_itself(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crashes(*_: object, **__: object) -> None:
        raise RuntimeError("/srv/secret is not a folder")

    monkeypatch.setattr(Services, "submit", crashes)
    response = await api.http.post(SUBMIT, json=body(api))
    assert (response.status_code, response.json()) == (
        500,
        {"status": "error", "message": "Internal server error. Please try again."},
    )


@pytest.mark.anyio
async def test_a_queue_that_is_away_is_a_503(make_api: Callable[..., Api]) -> None:
    api = make_api(redis_url=SecretStr("unix:///nonexistent/redis.sock"), dialects={})
    response = await api.http.post(SUBMIT, json=body(api))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert response.json() == {
        "status": "error",
        "message": "Service temporarily unavailable. Please try again later.",
    }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", SUBMIT, 405, f"GET is not allowed for {SUBMIT}; use POST."),
        ("POST", "/api/v6/video/scene_maker", 404, "There is nothing at POST /api/v6/video/scene_maker."),
    ],
)
async def test_what_is_not_there_is_an_error_in_json(
    api: Api, method: str, path: str, status: int, message: str
) -> None:
    response = await api.http.request(method, path)
    assert (response.status_code, response.json()) == (status, {"status": "error", "message": message})
