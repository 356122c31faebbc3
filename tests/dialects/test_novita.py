"""Novita v3, as its documents and real clients speak it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from polyreel.catalogue import Catalogue
from polyreel.entries import Adapter
from polyreel.errors import TooManyJobs, UnknownModel
from polyreel.job import JobStatus
from polyreel.request import AdapterUse, PromptSpan, VideoRequest
from polyreel.settings import Settings
from server.body import validate
from server.dialects.novita import results, txt2video
from server.dialects.novita.errors import render_error
from server.dialects.novita.settings import NovitaSettings
from server.dialects.novita.txt2video import TextToVideo
from tests.conftest import Api
from tests.dialects.golden import Row, finished, golden, without_drawn_seed

SUBMIT, RESULT = "/v3/async/txt2video", "/v3/async/task-result"
NO_ONE = "00000000-0000-4000-8000-000000000000"
BASE = {
    "model_name": "darkSushiMixMix_225D_64380.safetensors",
    "height": 256,
    "width": 256,
    "steps": 8,
    "prompts": [{"frames": 8, "prompt": "a cat"}],
}


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def submit(api: Api, **fields: Any) -> str:
    response = await api.http.post(SUBMIT, json=BASE | fields, headers=auth(api.key))
    assert response.status_code == 200, response.text
    return str(response.json()["task_id"])


async def result(api: Api, task_id: str, key: str | None = None) -> dict[str, Any]:
    response = await api.http.get(RESULT, params={"task_id": task_id}, headers=auth(key or api.key))
    assert response.status_code == 200, response.text
    return dict(response.json())


@pytest.mark.anyio
async def test_the_largest_documented_video_is_accepted(api: Api) -> None:
    clips = [{"frames": 64, "prompt": "a cat"}, {"frames": 64, "prompt": "a dog"}]
    await submit(api, height=1024, width=1024, steps=50, prompts=clips)
    request = api.newest().job.request
    assert (request.num_frames, request.height, request.width) == (128, 1024, 1024)


# The two translations


@pytest.mark.parametrize("row", golden("novita"), ids=str)
def test_a_body_becomes_the_neutral_request(row: Row, catalogue: Catalogue) -> None:
    request = txt2video.from_wire(validate(TextToVideo, row.wire), catalogue, NovitaSettings())
    assert without_drawn_seed(request, row.neutral) == VideoRequest.from_dict(row.neutral)


@pytest.mark.parametrize("row", golden("novita"), ids=str)
def test_the_finished_request_becomes_the_task_result(row: Row) -> None:
    stored = finished(VideoRequest.from_dict(row.neutral), row.answer["task"]["task_id"])
    link = row.answer["videos"][0]["video_url"]
    answer = results.to_wire(stored, [link], ttl_s=3600, eta_s=0)
    assert {name: answer[name] for name in row.answer} == row.answer
    assert list(answer) == ["extra", "task", "images", "videos", "audios"]


def test_the_settings_give_what_the_page_leaves_open(catalogue: Catalogue) -> None:
    settings = NovitaSettings(fps=12, guidance_scale=3)
    request = txt2video.from_wire(validate(TextToVideo, BASE), catalogue, settings)
    assert (request.fps, request.outputs[0].fps, request.guidance_scale) == (12, 12, 3)


def test_loras_embeddings_and_a_loop_become_the_neutral_request(catalogue: Catalogue) -> None:
    fields = {
        "loras": [{"model_name": "goodhands-BETA2_39807", "strength": 0.25}],
        "embeddings": [{"model_name": "badhandv4_16755"}, {"model_name": "badhandv4_16755"}],
        "closed_loop": True,
    }
    request = txt2video.from_wire(validate(TextToVideo, BASE | fields), catalogue, NovitaSettings())
    assert request.loras == (AdapterUse("style-tiny", 0.25),)
    assert request.embeddings == ("badhandv4-tiny",)
    assert request.closed_loop is True


def test_a_lora_is_only_known_to_the_models_that_it_was_made_for(settings: Settings) -> None:
    entry = settings.models["atelier"].model_copy(update={"names": {"novita": ("wan.safetensors",)}})
    catalogue = Catalogue({**settings.models, "atelier": entry}, settings.loras, settings.embeddings)
    fields = {"model_name": "wan.safetensors", "loras": [{"model_name": "GoodHands-beta2_39807", "strength": 1}]}
    with pytest.raises(UnknownModel, match=r"LoRA GoodHands-beta2_39807 is not served here\. Served: neon, outline\."):
        txt2video.from_wire(validate(TextToVideo, BASE | fields), catalogue, NovitaSettings())


@pytest.mark.anyio
async def test_several_prompts_run_on_wan_as_well(make_api: Callable[..., Api], settings: Settings) -> None:
    entry = settings.models["atelier"]
    entry = entry.model_copy(update={"names": {**entry.names, "novita": ("wan.safetensors",)}})
    api = make_api(models={**settings.models, "atelier": entry})
    clips = [{"frames": 8, "prompt": "a cat"}, {"frames": 9, "prompt": "a dog"}]
    await submit(api, model_name="wan.safetensors", prompts=clips)

    request = api.newest().job.request
    assert request.model == "atelier"
    assert request.prompts == (PromptSpan("a cat", 8), PromptSpan("a dog", 9))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"prompts": [{"frames": 8, "prompt": "a"}, {"frames": 8, "prompt": "b"}]},
            "prompts: ltx.safetensors cannot do this (prompt_travel). "
            "Models that can: wan2.2, darkSushiMixMix_225D_64380.safetensors.",
        ),
        (
            {"closed_loop": True},
            "closed_loop: ltx.safetensors cannot do this (closed_loop). "
            "Models that can: darkSushiMixMix_225D_64380.safetensors.",
        ),
    ],
)
async def test_what_a_model_cannot_do_is_refused_with_those_that_can(
    make_api: Callable[..., Api], settings: Settings, fields: dict[str, Any], said: str
) -> None:
    entry = settings.models["ltx-tiny"]
    entry = entry.model_copy(update={"names": {**entry.names, "novita": ("ltx.safetensors",)}})
    api = make_api(models={**settings.models, "ltx-tiny": entry})
    wire = BASE | {"model_name": "ltx.safetensors"} | fields
    answer = await api.http.post(SUBMIT, json=wire, headers=auth(api.key))
    assert answer.status_code == 400
    assert answer.json()["message"] == said


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "",
            [
                "wan2.2",
                "darkSushiMixMix_225D_64380.safetensors",
                "outline",
                "neon",
                "GoodHands-beta2_39807",
                "badhandv4_16755",
            ],
        ),
        ("checkpoint", ["wan2.2", "darkSushiMixMix_225D_64380.safetensors"]),
        ("lora", ["outline", "neon", "GoodHands-beta2_39807"]),
        ("textualinversion", ["badhandv4_16755"]),
        ("vae", []),
    ],
)
async def test_the_list_of_models_is_filtered_by_kind(api: Api, kind: str, names: list[str]) -> None:
    answer = await api.http.get("/v3/model", params={"filter.types": kind}, headers=auth(api.key))
    assert [model["sd_name_in_api"] for model in answer.json()["models"]] == names


# Refusals

NAMES = "darkSushiMixMix_225D_64380.safetensors"
HOOK = {"url": "https://example.com/hook"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_name": None}, "model_name must be a string, got null"),
    ({"model_name": 7}, "model_name must be a string, got 7"),
    (
        {"model_name": "darkSushi_64380.safetensors"},
        f"Model darkSushi_64380.safetensors is not served here. Did you mean {NAMES}? Served: {NAMES}, wan2.2.",
    ),
    ({"model_name": "sdxl"}, f"Model sdxl is not served here. Served: {NAMES}, wan2.2."),
    ({"height": None}, "height must be an integer, got null"),
    ({"height": 255}, "height must be between 256 and 1024, got 255"),
    ({"height": 1025}, "height must be between 256 and 1024, got 1025"),
    ({"height": "tall"}, 'height must be an integer, got "tall"'),
    ({"height": True}, "height must be a number, got true"),
    ({"width": 255}, "width must be between 256 and 1024, got 255"),
    ({"width": 1025}, "width must be between 256 and 1024, got 1025"),
    ({"width": 512.5}, "width must be an integer, got 512.5"),
    ({"steps": 0}, "steps must be between 1 and 50, got 0"),
    ({"steps": 51}, "steps must be between 1 and 50, got 51"),
    ({"prompts": None}, "prompts must be a list, got null"),
    ({"prompts": "a cat"}, 'prompts must be a list, got "a cat"'),
    ({"prompts": []}, "prompts must be a list of at least 1 items, got a list of 0"),
    (
        {"prompts": [{"frames": 8, "prompt": "a"}] * 17},
        "prompts must be a list of at most 16 items, got a list of 17",
    ),
    ({"prompts": ["a cat"]}, 'prompts.0 must be an object, got "a cat"'),
    ({"prompts": [{"frames": 8}]}, "prompts.0.prompt is required"),
    ({"prompts": [{"prompt": "a"}]}, "prompts.0.frames is required"),
    ({"prompts": [{"frames": 7, "prompt": "a"}]}, "prompts.0.frames must be between 8 and 64, got 7"),
    ({"prompts": [{"frames": 65, "prompt": "a"}]}, "prompts.0.frames must be between 8 and 64, got 65"),
    ({"prompts": [{"frames": 8, "prompt": ""}]}, "prompts.0.prompt must not be blank"),
    (
        {"prompts": [{"frames": 8, "prompt": "a"}, {"frames": 8, "prompt": "p" * 1025}]},
        "prompts.1.prompt must be at most 1024 characters, got 1025",
    ),
    (
        {"prompts": [{"frames": 43, "prompt": "a"}] * 3},
        "prompts: the frames of all prompts must add up to 128 or less, got 129",
    ),
    ({"negative_prompt": "n" * 1025}, "negative_prompt must be at most 1024 characters, got 1025"),
    ({"negative_prompt": 5}, "negative_prompt must be a string, got 5"),
    ({"guidance_scale": 0.9}, "guidance_scale must be between 1 and 30, got 0.9"),
    ({"guidance_scale": 30.1}, "guidance_scale must be between 1 and 30, got 30.1"),
    ({"guidance_scale": "high"}, 'guidance_scale must be a number, got "high"'),
    ({"seed": -2}, "seed must be between -1 and 9223372036854775807, got -2"),
    ({"seed": 2**63}, "seed must be between -1 and 9223372036854775807, got 9223372036854775808"),
    ({"seed": 1.5}, "seed must be an integer, got 1.5"),
    ({"loras": {}}, "loras must be a list, got an object"),
    ({"loras": [{"model_name": "a", "strength": 1}] * 6}, "loras must be a list of at most 5 items, got a list of 6"),
    ({"loras": [{"model_name": "a"}]}, "loras.0.strength is required"),
    ({"loras": [{"strength": 1}]}, "loras.0.model_name is required"),
    ({"loras": [{"model_name": "a", "strength": 1.1}]}, "loras.0.strength must be between 0 and 1, got 1.1"),
    ({"loras": [{"model_name": "a", "strength": -0.1}]}, "loras.0.strength must be between 0 and 1, got -0.1"),
    (
        {"loras": [{"model_name": "GoodHands-beta_39807", "strength": 0.5}]},
        "LoRA GoodHands-beta_39807 is not served here. Did you mean GoodHands-beta2_39807? "
        "Served: GoodHands-beta2_39807.",
    ),
    (
        {"embeddings": [{"model_name": "a"}] * 6},
        "embeddings must be a list of at most 5 items, got a list of 6",
    ),
    ({"embeddings": [{}]}, "embeddings.0.model_name is required"),
    (
        {"embeddings": [{"model_name": "../badhandv4"}]},
        "Embedding ../badhandv4 is not served here. Did you mean badhandv4_16755? Served: badhandv4_16755.",
    ),
    (
        {"loras": [{"model_name": "GoodHands-beta2_39807", "strength": 0.5}] * 2},
        "loras.1.model_name: GoodHands-beta2_39807 comes twice; send it once",
    ),
    ({"closed_loop": "perhaps"}, 'closed_loop must be true or false, got "perhaps"'),
    ({"clip_skip": 0}, "clip_skip must be between 1 and 12, got 0"),
    ({"clip_skip": 13}, "clip_skip must be between 1 and 12, got 13"),
    ({"extra": []}, "extra must be an object, got a list of 0"),
    (
        {"extra": {"response_video_type": "webm"}},
        "extra.response_video_type must be one of 'mp4' or 'gif', got \"webm\"",
    ),
    ({"extra": {"webhook": {}}}, "extra.webhook.url is required"),
    ({"extra": {"webhook": {"url": "ftp://x/"}}}, "extra.webhook.url must start with https://, got ftp:"),
    (
        {"extra": {"webhook": {**HOOK, "test_mode": {"enabled": True}}}},
        "extra.webhook.test_mode.return_task_status is required",
    ),
    (
        {"extra": {"webhook": {**HOOK, "test_mode": {"enabled": True, "return_task_status": "DONE"}}}},
        "extra.webhook.test_mode.return_task_status must be one of 'TASK_STATUS_SUCCEED' or 'TASK_STATUS_FAILED', "
        'got "DONE"',
    ),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message[:70] for _, message in REFUSED])
async def test_a_wrong_field_is_refused_in_one_sentence(api: Api, fields: dict[str, Any], message: str) -> None:
    response = await api.http.post(SUBMIT, json=BASE | fields, headers=auth(api.key))
    assert response.status_code == 400
    assert response.json() == {"code": 400, "reason": "INVALID_REQUEST_BODY", "message": message, "metadata": {}}
    assert api.records.open_ids() == []


@pytest.mark.anyio
@pytest.mark.parametrize("field", ["model_name", "height", "width", "steps", "prompts"])
async def test_a_required_field_is_asked_for_by_name(api: Api, field: str) -> None:
    body = {name: value for name, value in BASE.items() if name != field}
    response = await api.http.post(SUBMIT, json=body, headers=auth(api.key))
    assert response.status_code == 400
    assert response.json()["message"] == f"{field} is required"


CALLS: list[tuple[str, str, dict[str, str], int, str, str]] = [
    ("POST", SUBMIT, {}, 401, "MISSING_API_KEY", "No API key was sent."),
    ("POST", SUBMIT, {"Authorization": "Bearer "}, 401, "MISSING_API_KEY", "No API key was sent."),
    ("POST", SUBMIT, {"Authorization": "Bearer nope"}, 403, "INVALID_API_KEY", "The API key is not known here."),
    ("GET", RESULT, {}, 401, "MISSING_API_KEY", "No API key was sent."),
    ("GET", RESULT, {"Authorization": "nope"}, 403, "INVALID_API_KEY", "The API key is not known here."),
    ("GET", "/v3/model", {}, 401, "MISSING_API_KEY", "No API key was sent."),
    ("GET", "/v3/user", {}, 401, "MISSING_API_KEY", "No API key was sent."),
    ("POST", "/v3/async/kling", {}, 404, "API_NOT_FOUND", "There is no API and no model called kling."),
    ("POST", "/v3/hf/kling", {}, 404, "API_NOT_FOUND", "There is no API and no model called kling."),
    ("POST", "/v3/video/create", {}, 404, "API_NOT_FOUND", "There is nothing at POST /v3/video/create."),
    ("POST", RESULT, {}, 405, "API_NOT_FOUND", f"POST is not allowed for {RESULT}; use GET."),
    ("GET", SUBMIT, {}, 405, "API_NOT_FOUND", f"GET is not allowed for {SUBMIT}; use POST."),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path", "headers", "status", "reason", "message"), CALLS)
async def test_a_refused_call_has_the_flat_error_body(
    api: Api, method: str, path: str, headers: dict[str, str], status: int, reason: str, message: str
) -> None:
    response = await api.http.request(method, path, headers=headers)
    assert response.status_code == status
    assert response.json() == {"code": status, "reason": reason, "message": message, "metadata": {}}


@pytest.mark.anyio
@pytest.mark.parametrize("header", ["Bearer {key}", "bearer {key}", "BEARER  {key}", "{key}"])
async def test_the_key_comes_as_a_bearer_or_alone(api: Api, header: str) -> None:
    response = await api.http.post(SUBMIT, json=BASE, headers={"Authorization": header.format(key=api.key)})
    assert response.status_code == 200


def test_a_full_queue_says_when_to_come_back() -> None:
    response = render_error(TooManyJobs("The queue is full.", retry_after_s=30), NovitaSettings())
    assert (response.status_code, response.headers["Retry-After"]) == (429, "30")
    assert json.loads(bytes(response.body)) == {
        "code": 429,
        "reason": "RATE_LIMIT_EXCEEDED",
        "message": "The queue is full.",
        "metadata": {},
    }


@pytest.mark.anyio
async def test_a_full_queue_refuses_the_next_submit(make_api: Callable[..., Api]) -> None:
    api = make_api(max_queued=1, dialects={})
    await submit(api)
    response = await api.http.post(SUBMIT, json=BASE, headers=auth(api.key))
    assert (response.status_code, response.json()["reason"]) == (429, "RATE_LIMIT_EXCEEDED")
    assert response.headers["Retry-After"] == "30"


@pytest.mark.anyio
async def test_a_queue_that_is_away_is_told_apart_by_call(make_api: Callable[..., Api]) -> None:
    api = make_api(redis_url=SecretStr("unix:///nonexistent/redis.sock"), dialects={})
    submitted = await api.http.post(SUBMIT, json=BASE, headers=auth(api.key))
    polled = await api.http.get(RESULT, params={"task_id": NO_ONE}, headers=auth(api.key))
    assert (submitted.status_code, submitted.json()["reason"]) == (503, "CREATE_TASK_FAILED")
    assert (polled.status_code, polled.json()["reason"]) == (503, "GET_RESULT_FAILED")
    assert submitted.headers["Retry-After"] == polled.headers["Retry-After"] == "5"


# Task results


@pytest.mark.anyio
async def test_a_submit_answers_nothing_but_the_task_id(api: Api) -> None:
    response = await api.http.post(SUBMIT, json=BASE, headers=auth(api.key))
    assert response.status_code == 200
    assert response.json() == {"task_id": api.newest().job.id}


STATUSES = [
    (JobStatus.QUEUED, "TASK_STATUS_QUEUED", ""),
    (JobStatus.LOADING, "TASK_STATUS_PROCESSING", ""),
    (JobStatus.RUNNING, "TASK_STATUS_PROCESSING", ""),
    (JobStatus.ENCODING, "TASK_STATUS_PROCESSING", ""),
    (JobStatus.UPLOADING, "TASK_STATUS_PROCESSING", ""),
    (JobStatus.SUCCEEDED, "TASK_STATUS_SUCCEED", ""),
    (JobStatus.FAILED, "TASK_STATUS_FAILED", "The job failed."),
    (JobStatus.CANCELLED, "TASK_STATUS_FAILED", "The job was cancelled."),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "said", "reason"), STATUSES)
async def test_a_task_result_has_every_key_with_its_type_in_each_status(
    api: Api, status: JobStatus, said: str, reason: str
) -> None:
    """The official Python client raises on a fraction, a null, an empty time and a missing key."""
    task_id = await submit(api, seed=158881667)
    if status is JobStatus.SUCCEEDED:
        api.finish(task_id)
    elif status is not JobStatus.QUEUED:
        assert api.records.advance(task_id, api.claim(task_id), status, progress=40)
    answer = await result(api, task_id)

    task, extra = answer["task"], answer["extra"]
    assert list(task) == ["task_id", "task_type", "status", "reason", "eta", "progress_percent"]
    assert (task["task_id"], task["task_type"]) == (task_id, "TXT_TO_VIDEO")
    assert (task["status"], task["reason"]) == (said, reason)
    assert type(task["eta"]) is int
    assert (task["eta"] == 0) is status.is_terminal
    assert type(task["progress_percent"]) is int
    assert task["progress_percent"] == {"queued": 0, "succeeded": 100}.get(status, 40)
    assert extra["seed"] == "158881667"
    assert extra["enable_nsfw_detection"] is False
    assert extra["debug_info"].pop("request_info") == ""
    assert list(extra["debug_info"]) == ["submit_time_ms", "execute_time_ms", "complete_time_ms"]
    assert all(type(time) is str and time.isdigit() for time in extra["debug_info"].values())
    assert answer["images"] == answer["audios"] == []
    assert len(answer["videos"]) == (status is JobStatus.SUCCEEDED)
    for video in answer["videos"]:
        assert list(video) == ["video_url", "video_url_ttl", "video_type"]
        assert video["video_url"].startswith("http://api.test/files/")
        assert (video["video_url_ttl"], video["video_type"]) == ("3600", "mp4")


@pytest.mark.anyio
async def test_a_failed_task_says_why_with_status_200(api: Api) -> None:
    task_id = await submit(api)
    api.fail(task_id, "The GPU has too little memory.")
    task = (await result(api, task_id))["task"]
    assert (task["status"], task["reason"]) == ("TASK_STATUS_FAILED", "The GPU has too little memory.")


@pytest.mark.anyio
async def test_the_link_needs_no_key(api: Api) -> None:
    task_id = await submit(api)
    api.finish(task_id, b"mp4 bytes")
    link = (await result(api, task_id))["videos"][0]["video_url"]
    assert (await api.http.get(link)).content == b"mp4 bytes"


def expiry(answer: dict[str, Any]) -> int:
    return int(answer["videos"][0]["video_url"].partition("exp=")[2].partition("&")[0])


@pytest.mark.anyio
async def test_each_answer_signs_its_links_afresh(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = await submit(api)
    ended_at = api.finish(task_id).ended_at
    for later in (0.0, 1000.0):
        monkeypatch.setattr(results.time, "time", lambda now=ended_at + later: now)
        assert expiry(await result(api, task_id)) == int(ended_at + later) + 3600


@pytest.mark.anyio
async def test_no_link_promises_more_than_the_file_is_kept(make_api: Callable[..., Api]) -> None:
    api = make_api(retention_s=100, dialects={})
    task_id = await submit(api)
    ended_at = api.finish(task_id).ended_at
    answer = await result(api, task_id)
    assert expiry(answer) <= ended_at + 100
    assert 90 <= int(answer["videos"][0]["video_url_ttl"]) <= 100


@pytest.mark.anyio
async def test_another_owners_task_reads_exactly_as_one_that_never_was(api: Api) -> None:
    task_id = await submit(api)
    theirs = await api.http.get(RESULT, params={"task_id": task_id}, headers=auth(api.other_key))
    nobodys = await api.http.get(RESULT, params={"task_id": NO_ONE}, headers=auth(api.other_key))
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.content == nobodys.content
    assert theirs.json() == {
        "code": 404,
        "reason": "TASK_NOT_FOUND",
        "message": "No job has this id.",
        "metadata": {},
    }


@pytest.mark.anyio
@pytest.mark.parametrize("task_id", ["x", "../..", "é", "\x00", "9" * 40, NO_ONE.upper() + "A", "{}", "-1"])
async def test_a_malformed_task_id_is_an_unknown_one(api: Api, task_id: str) -> None:
    response = await api.http.get(RESULT, params={"task_id": task_id}, headers=auth(api.key))
    assert (response.status_code, response.json()["reason"]) == (404, "TASK_NOT_FOUND")


@pytest.mark.anyio
@pytest.mark.parametrize("query", ["", "?task_id=", "?taskid=1"])
async def test_a_missing_task_id_is_asked_for(api: Api, query: str) -> None:
    response = await api.http.get(RESULT + query, headers=auth(api.key))
    assert (response.status_code, response.json()["message"]) == (400, "task_id is required")


@pytest.mark.anyio
async def test_a_job_of_another_dialect_can_be_read(api: Api) -> None:
    await api.http.post("/api/v6/video/text2video", json={"key": api.key, "prompt": "x", "seed": 7})
    task_id = api.newest().job.id
    api.finish(task_id)
    answer = await result(api, task_id)
    assert (answer["task"]["task_type"], answer["task"]["status"]) == ("TXT_TO_VIDEO", "TASK_STATUS_SUCCEED")
    assert (answer["extra"]["seed"], answer["videos"][0]["video_type"]) == ("7", "gif")


def test_an_archive_is_not_among_the_videos() -> None:
    row = {**golden("novita")[0].neutral, "seed": 1}
    row["outputs"] = [{"format": "gif", "fps": 8}, {"format": "zip", "fps": 8}]
    stored = finished(VideoRequest.from_dict(row), NO_ONE)
    videos = results.to_wire(stored, ["http://api.test/v.gif"], 3600, 0)["videos"]
    assert videos == [{"video_url": "http://api.test/v.gif", "video_url_ttl": "3600", "video_type": "gif"}]


# Models and user


@pytest.mark.anyio
async def test_the_model_list_names_what_txt2video_takes(api: Api) -> None:
    response = await api.http.get("/v3/model?filter.types=checkpoint", headers=auth(api.key))
    assert response.json() == {
        "models": [
            {
                "id": 1014049605,
                "name": "wan2.2",
                "hash_sha256": "",
                "sd_name": "wan2.2",
                "type": {"name": "checkpoint", "display_name": "Checkpoint"},
                "categories": [],
                "status": 1,
                "download_url": "",
                "tags": [],
                "cover_url": "",
                "source": "civitai",
                "base_model": "wan",
                "base_model_type": "Standard",
                "download_url_ttl": 0,
                "sd_name_in_api": "wan2.2",
                "is_sdxl": False,
            },
            {
                "id": 996660037,
                "name": "darkSushiMixMix_225D_64380",
                "hash_sha256": "",
                "sd_name": "darkSushiMixMix_225D_64380.safetensors",
                "type": {"name": "checkpoint", "display_name": "Checkpoint"},
                "categories": [],
                "status": 1,
                "download_url": "",
                "tags": [],
                "cover_url": "",
                "source": "civitai",
                "base_model": "SD 1.5",
                "base_model_type": "Standard",
                "download_url_ttl": 0,
                "sd_name_in_api": "darkSushiMixMix_225D_64380.safetensors",
                "is_sdxl": False,
            },
        ],
        "pagination": {"next_cursor": ""},
    }


@pytest.mark.anyio
async def test_a_lora_is_listed_by_the_family_that_it_was_made_for(
    make_api: Callable[..., Api], catalogue: Catalogue
) -> None:
    ink = Adapter(checkpoint="ink.safetensors", models=("atelier",), names={"novita": ("ink",)})
    api = make_api(loras={**catalogue.loras, "ink": ink}, dialects={})
    answer = await api.http.get("/v3/model?filter.types=lora", headers=auth(api.key))
    assert [(model["sd_name"], model["base_model"]) for model in answer.json()["models"]] == [
        ("outline", "wan"),
        ("neon", "wan"),
        ("GoodHands-beta2_39807", "SD 1.5"),
        ("ink", "wan"),
    ]


FILTERS = [
    ("filter.types=checkpoint", 2),
    ("filter.type=checkpoint", 2),
    ("filter%5Btypes%5D=checkpoint", 2),
    ("filter[types][]=checkpoint", 2),
    ("filter.types=lora", 3),
    ("filter%5Btypes%5D=lora", 3),
    ("filter.types=textualinversion", 1),
    ("filter.visibility=public", 6),
    ("filter.visibility=private", 0),
    ("filter.source=civitai", 6),
    ("filter.source=training", 0),
    ("filter.is_sdxl=False", 6),
    ("filter.is_sdxl=true", 0),
    ("filter.is_inpainting=FALSE", 6),
    ("filter.is_inpainting=True", 0),
    ("filter.query=SUSHI", 1),
    ("filter.query=nothing", 0),
    ("filter.query=&filter.types=", 6),
    ("pagination.cursor=c_0", 6),
    ("pagination[cursor]=c_c_0", 6),
    ("pagination.cursor=c_100&pagination.limit=100", 0),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("query", "count"), FILTERS)
async def test_the_model_list_is_filtered(api: Api, query: str, count: int) -> None:
    response = await api.http.get(f"/v3/model?{query}", headers=auth(api.key))
    assert response.status_code == 200
    assert len(response.json()["models"]) == count


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("pagination.limit=0", "pagination.limit must be a whole number between 1 and 100, got 0"),
        ("pagination.limit=101", "pagination.limit must be a whole number between 1 and 100, got 101"),
        ("pagination[limit]=many", "pagination.limit must be a whole number between 1 and 100, got many"),
        ("pagination.cursor=c_x", "pagination.cursor must be one that a listing gave, such as c_20, got c_x"),
    ],
)
async def test_a_page_that_cannot_be_is_refused(api: Api, query: str, message: str) -> None:
    response = await api.http.get(f"/v3/model?{query}", headers=auth(api.key))
    assert (response.status_code, response.json()["message"]) == (400, message)


@pytest.mark.anyio
async def test_the_cursor_walks_the_list_to_its_end(make_api: Callable[..., Api], catalogue: Catalogue) -> None:
    entry = catalogue["animatediff-tiny"].model_copy(update={"names": {"novita": ("a", "b", "c")}})
    api = make_api(models={"many": entry}, loras={}, embeddings={}, dialects={})
    names, cursor = [], "c_0"
    while cursor:
        query = {"pagination.limit": "2", "pagination.cursor": cursor}
        page = (await api.http.get("/v3/model", params=query, headers=auth(api.key))).json()
        names.append([model["sd_name"] for model in page["models"]])
        cursor = page["pagination"]["next_cursor"]
    assert names == [["a", "b"], ["c"]]


@pytest.mark.anyio
async def test_the_account_is_empty_and_costs_nothing(api: Api) -> None:
    response = await api.http.get("/v3/user", headers=auth(api.key))
    assert response.json() == {"allow_features": [], "credit_balance": 0, "free_trial": {}}
