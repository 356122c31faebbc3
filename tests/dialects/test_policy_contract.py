"""What a content policy refuses reads as an error of the API that was called, whichever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import anyio
import httpx2
import pytest

from polyreel.policy import ALLOWED, Judge, Verdict, refuse
from polyreel.request import VideoRequest
from server.dialects import Dialect, dialects
from tests.conftest import Api
from tests.dialects.calling import assert_is_error, call, content_of, every_submit, headers_of, over

pytestmark = pytest.mark.anyio

REASON = "No such thing is shown here."

#: The vendors' own words for it.
WORDS: dict[str, dict[str, object]] = {
    "huggingface": {},
    "modelslab": {"status": "error"},
    "native": {"code": "content_refused", "title": "Content refused"},
    "novita": {"code": 400, "reason": "INVALID_REQUEST_BODY"},
    "openai": {"code": "moderation_blocked", "type": "invalid_request_error", "param": None},
    "universal": {"ok": False},
}


class Policy:
    """Answers with `check`, and remembers whom it was asked about."""

    def __init__(self, check: Callable[[], Verdict]) -> None:
        self.check = check
        self.asked: list[tuple[str, str]] = []

    def check_request(self, request: VideoRequest, owner: str) -> Verdict:
        self.asked.append((request.prompts[0].prompt, owner))
        return self.check()

    def check_frames(self, frames: object, request: VideoRequest, owner: str) -> Verdict:
        raise AssertionError("no API sees frames")


def judged(api: Api, check: Callable[[], Verdict]) -> Policy:
    policy = Policy(check)
    api.app.state.services = replace(api.app.state.services, judge=Judge("strict", policy))
    return policy


async def submit(api: Api, dialect: Dialect) -> tuple[httpx2.Response, list[object]]:
    [response], jobs = await call(api, dialect, content_of(dialect, api.key), headers_of(dialect, api.key))
    return response, list(jobs)


@every_submit
async def test_a_refused_request_is_an_error_in_the_dialects_own_words(api: Api, dialect: Dialect) -> None:
    policy = judged(api, lambda: refuse(REASON))
    response, jobs = await submit(api, dialect)
    assert_is_error(dialect, response, 400)
    assert f"The request was refused by this server's content policy: {REASON}" in response.text
    body = response.json()
    assert {**body, **(body["error"] if isinstance(body.get("error"), dict) else {})}.items() >= WORDS.get(
        dialect.name, {}
    ).items()
    assert jobs == []
    [(prompt, owner)] = policy.asked
    assert owner == "alice"
    assert prompt in json.dumps(dialect.example.body, ensure_ascii=False) if dialect.example else True


@every_submit
async def test_a_policy_that_fails_lets_nothing_in_and_says_when_to_come_again(api: Api, dialect: Dialect) -> None:
    judged(api, lambda: {}["broken"])  # type: ignore[index]
    response, jobs = await submit(api, dialect)
    assert_is_error(dialect, response, 503)
    assert int(response.headers["Retry-After"]) > 0
    assert "broken" not in response.text
    assert jobs == []


@every_submit
async def test_the_record_of_an_allowed_request_names_the_policy(api: Api, dialect: Dialect) -> None:
    judged(api, lambda: ALLOWED)
    response, [made] = await submit(api, dialect)
    assert response.status_code in (200, 202)
    assert made.job.content_policy == "strict"  # type: ignore[attr-defined]


@over([dialects()[name] for name in ("huggingface", "universal")])
async def test_a_client_that_waits_is_told_that_its_video_was_refused(api: Api, dialect: Dialect) -> None:
    answers: list[httpx2.Response] = []

    async def send() -> None:
        assert dialect.example
        content, headers = content_of(dialect, api.key), headers_of(dialect, api.key)
        answers.append(await api.http.request("POST", dialect.example.path, content=content, headers=headers))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            while not api.records.open_ids():  # noqa: ASYNC110 what is waited for is in Redis
                await anyio.sleep(0.01)
            api.fail(api.records.open_ids()[0], f"The video was refused: {REASON}", "content_refused")
    assert_is_error(dialect, answers[0], 400)
    assert REASON in answers[0].text


async def test_openai_and_native_name_a_refused_video_by_code(api: Api) -> None:
    openai = dialects()["openai"]
    assert openai.example
    headers = headers_of(openai, api.key)
    made = await api.http.post(openai.example.path, content=content_of(openai, api.key), headers=headers)
    name = made.json()["id"]
    api.fail(name, REASON, "content_refused")
    video = (await api.http.get(f"/v1/videos/{name}", headers=headers)).json()
    assert (video["status"], video["error"]) == ("failed", {"code": "moderation_blocked", "message": REASON})
    job = (await api.http.get(f"/polyreel/v1/jobs/{name}", headers=headers)).json()
    assert job["error"] == {"code": "content_refused", "message": REASON}
