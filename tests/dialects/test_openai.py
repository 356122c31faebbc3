"""OpenAI's Videos API, as its reference, its Python package and other servers of it speak it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from polyreel.catalogue import Catalogue
from polyreel.errors import (
    ConfigurationError,
    InvalidKey,
    InvalidRequest,
    KeyReused,
    LimitReached,
    MissingKey,
    NotAllowed,
    NotCancellable,
    NotServedYet,
    PolyreelError,
    QueueUnavailable,
    RequestTooLarge,
    StorageFailed,
    UnknownJob,
    UnknownModel,
)
from polyreel.job import JobStatus
from polyreel.keys import Caller
from polyreel.request import OutputSpec, PromptSpan, VideoRequest, picture_key
from server.body import validate
from server.dialects.openai.creation import CreateVideo, OpenAISettings, from_wire
from server.dialects.openai.errors import render_error
from server.dialects.openai.video import to_wire
from tests.conftest import Api
from tests.dialects.golden import Row, finished, golden, without_drawn_seed
from tests.server.pictures import picture_text, png

VIDEOS = "/v1/videos"
NO_ONE = "00000000-0000-4000-8000-000000000000"
WEEK_S = 7 * 24 * 3600.0
BASE = {"prompt": "a cat", "size": "64x64", "num_frames": 9}


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def create(api: Api, *, key: str | None = None, **fields: Any) -> dict[str, Any]:
    response = await api.http.post(VIDEOS, json=BASE | fields, headers=auth(key or api.key))
    assert response.status_code == 200, response.text
    return dict(response.json())


async def form(api: Api, fields: dict[str, Any], files: Any = None, **headers: str) -> httpx2.Response:
    """Send a form; without a file httpx2 would send it in another way, so each field is a part without a file name."""
    parts = [(name, (None, str(value))) for name, value in fields.items()]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.http.post(VIDEOS, files=parts + (files or []), headers=auth(api.key) | named)


async def get(api: Api, path: str, *, key: str | None = None, **params: Any) -> httpx2.Response:
    return await api.http.get(f"{VIDEOS}{path}", params=params, headers=auth(key or api.key))


def refusal(response: httpx2.Response) -> tuple[int, str, str | None, str | None]:
    """Return status, type, param and code."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["type"], error["param"], error["code"]


# The two translations


@pytest.mark.parametrize("row", golden("openai"), ids=str)
def test_a_body_becomes_the_neutral_request(row: Row, catalogue: Catalogue) -> None:
    request = from_wire(validate(CreateVideo, row.wire), catalogue, OpenAISettings())
    assert without_drawn_seed(request, row.neutral) == VideoRequest.from_dict(row.neutral)


@pytest.mark.parametrize("row", golden("openai"), ids=str)
def test_the_finished_request_becomes_the_video_object(row: Row, catalogue: Catalogue) -> None:
    stored = finished(VideoRequest.from_dict(row.neutral), row.answer["id"])
    assert to_wire(stored, catalogue, WEEK_S) == row.answer


@pytest.mark.parametrize("row", golden("openai", refused=True), ids=str)
def test_a_wrong_body_is_refused_in_words_that_name_the_field(row: Row, catalogue: Catalogue) -> None:
    with pytest.raises(PolyreelError) as refused:
        from_wire(validate(CreateVideo, row.wire), catalogue, OpenAISettings())
    assert refused.value.message == row.error


ERRORS: list[tuple[PolyreelError, tuple[int, str, str | None, str | None], dict[str, str]]] = [
    (MissingKey("no"), (401, "invalid_request_error", None, None), {}),
    (InvalidKey("no"), (401, "invalid_request_error", None, "invalid_api_key"), {}),
    (NotAllowed("no"), (403, "invalid_request_error", None, "not_allowed"), {}),
    (UnknownJob("no"), (404, "invalid_request_error", None, None), {}),
    (UnknownModel("x", []), (404, "invalid_request_error", "model", "model_not_found"), {}),
    (NotCancellable("no", "finishing"), (409, "invalid_request_error", None, "video_finishing"), {}),
    (RequestTooLarge("no"), (413, "invalid_request_error", None, "request_too_large"), {}),
    (KeyReused("no"), (422, "idempotency_error", None, "idempotency_key_reused"), {}),
    (NotServedYet("no", "file_id"), (400, "invalid_request_error", "file_id", "unsupported"), {}),
    (InvalidRequest("no", "size"), (400, "invalid_request_error", "size", "invalid_value"), {}),
    (LimitReached("no", 7), (429, "rate_limit_error", None, "rate_limit_exceeded"), {"retry-after": "7"}),
    (QueueUnavailable("no"), (503, "server_error", None, "service_unavailable"), {"retry-after": "5"}),
    (StorageFailed("secret path"), (500, "server_error", None, None), {}),
]


@pytest.mark.parametrize(("err", "envelope", "headers"), ERRORS, ids=[type(row[0]).__name__ for row in ERRORS])
def test_every_error_has_its_envelope(
    err: PolyreelError, envelope: tuple[int, str, str | None, str | None], headers: dict[str, str]
) -> None:
    response = render_error(err, OpenAISettings())
    error = json.loads(bytes(response.body))["error"]
    assert (response.status_code, error["type"], error["param"], error["code"]) == envelope
    assert error["message"] == ("The server had an error while processing your request." if
                                envelope[0] == 500 else err.message)  # fmt: skip
    assert {name: response.headers[name] for name in headers} == headers
    assert ("retry-after" in response.headers) == bool(headers)


# Create


@pytest.mark.anyio
async def test_a_new_video_is_queued_and_has_every_documented_key(api: Api) -> None:
    video = await create(api, model="sora-2", seconds="4", num_frames=None)
    created_at = video.pop("created_at")
    assert isinstance(created_at, int)
    assert video == {
        "id": api.newest().job.id,
        "object": "video",
        "completed_at": None,
        "expires_at": None,
        "status": "queued",
        "progress": 0,
        "model": "sora-2",
        "prompt": "a cat",
        "seconds": "4",
        "size": "64x64",
        "remixed_from_video_id": None,
        "error": None,
    }


@pytest.mark.anyio
async def test_a_video_is_made_with_a_thumbnail_and_a_spritesheet(api: Api) -> None:
    await create(api, fps=8)
    job = api.newest().job
    assert job.request.outputs == (OutputSpec("mp4", 8), OutputSpec("thumbnail", 8), OutputSpec("spritesheet", 8))
    assert [key.rpartition(".")[2] for key in job.output_keys] == ["mp4", "webp", "jpg"]


@pytest.mark.anyio
async def test_a_form_says_the_same_as_json(api: Api) -> None:
    await create(api, seed=5, guidance_scale=3.5, negative_prompt="blurry", model="ltx")
    in_json = api.newest().job.request
    answer = await form(
        api, BASE | {"seed": 5, "guidance_scale": 3.5, "negative_prompt": "blurry", "model": "ltx", "user": "x"}
    )
    assert answer.status_code == 200, answer.text
    assert api.newest().job.request == in_json


@pytest.mark.anyio
@pytest.mark.parametrize("file_name", ["cat.png", "../../etc/passwd"])
async def test_a_file_in_the_form_is_the_first_frame_whatever_it_is_called(api: Api, file_name: str) -> None:
    picture = png(64, 64)
    answer = await form(api, BASE, [("input_reference", (file_name, picture, "image/png"))])
    assert answer.status_code == 200, answer.text
    [image] = api.newest().job.request.images
    assert (image.key, image.frame_index) == (picture_key(picture), 0)
    assert api.storage.size(image.key) == len(picture)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "sent",
    [
        {"input_reference": {"image_url": "data:image/png;base64," + picture_text(png(64, 64))}},
        {"input_reference": "data:image/png;base64," + picture_text(png(64, 64))},
    ],
    ids=["an object", "a text"],
)
async def test_a_data_url_is_the_first_frame(api: Api, sent: dict[str, Any]) -> None:
    await create(api, **sent)
    assert [image.key for image in api.newest().job.request.images] == [picture_key(png(64, 64))]


@pytest.mark.anyio
async def test_a_data_url_in_a_form_is_the_first_frame(api: Api) -> None:
    url = "data:image/png;base64," + picture_text(png(64, 64))
    answer = await form(api, BASE | {"input_reference[image_url]": url})
    assert answer.status_code == 200, answer.text
    assert [image.key for image in api.newest().job.request.images] == [picture_key(png(64, 64))]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reference", "param", "code", "said"),
    [
        ({"file_id": "file-1"}, "input_reference.file_id", "unsupported", "this server has no Files API"),
        ({}, "input_reference", "invalid_value", "must be a file, or an object with an image_url"),
        ({"image_url": "bm90IGEgcGljdHVyZQ=="}, "input_reference.image_url", "invalid_value", "must be a picture"),
        ({"image_url": "http://127.0.0.1/cat.png"}, "input_reference.image_url", "invalid_value", "a public address"),
        (7, "input_reference", "invalid_value", "input_reference must be an object, got 7"),
    ],
    ids=["file_id", "nothing", "no picture", "an address inside", "a number"],
)
async def test_a_reference_that_cannot_be_used_is_refused(
    api: Api, reference: object, param: str, code: str, said: str
) -> None:
    response = await api.http.post(VIDEOS, json=BASE | {"input_reference": reference}, headers=auth(api.key))
    assert refusal(response) == (400, "invalid_request_error", param, code)
    assert said in response.json()["error"]["message"]
    assert api.records.open_ids() == []


@pytest.mark.anyio
async def test_two_references_are_refused(api: Api) -> None:
    file = ("input_reference", ("a.png", png(64, 64), "image/png"))
    twice = await form(api, BASE, [file, file])
    beside = await form(api, BASE | {"input_reference[image_url]": "http://a.test/"}, [file])
    for response in (twice, beside):
        assert refusal(response) == (400, "invalid_request_error", "input_reference", "invalid_value")
        assert response.json()["error"]["message"] == "input_reference comes twice; send it once"


@pytest.mark.anyio
async def test_a_retry_of_a_form_is_the_same_job_although_its_boundary_differs(api: Api) -> None:
    file = [("input_reference", ("a.png", png(64, 64), "image/png"))]
    first = await form(api, BASE, file, Idempotency_Key="once")
    again = await form(api, BASE, file, Idempotency_Key="once")
    other = await form(api, BASE | {"prompt": "a dog"}, file, Idempotency_Key="once")
    pictured = await form(api, BASE, [("input_reference", ("a.png", png(65, 64), "image/png"))], Idempotency_Key="once")
    assert first.request.headers["content-type"] != again.request.headers["content-type"]
    assert (first.status_code, again.json()) == (200, first.json())
    for response in (other, pictured):
        assert refusal(response) == (422, "idempotency_error", None, "idempotency_key_reused")


@pytest.mark.anyio
async def test_the_operator_chooses_the_model_of_clients_that_name_none(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"openai": {"default_model": "LTX"}, "universal": {"endpoint_model": "ltx"}})
    assert (await create(api))["model"] == "ltx"
    assert api.newest().job.request.model == "ltx-tiny"


def test_a_default_model_that_is_not_served_stops_the_start(make_api: Callable[..., Api]) -> None:
    with pytest.raises(ConfigurationError) as stopped:
        make_api(dialects={"openai": {"default_model": "sora-3"}, "universal": {"endpoint_model": "ltx"}})
    assert stopped.value.message == (
        "dialects.openai.default_model: 'sora-3' is not served. Did you mean sora-2? "
        "Served: animatediff, animatediff-tiny, atelier, ltx, ltx-tiny, sora-2, sora-2-pro, wan2.2."
    )


# Retrieve


@pytest.mark.anyio
async def test_a_video_goes_from_queued_to_completed(api: Api) -> None:
    video_id = (await create(api))["id"]
    waiting = await get(api, f"/{video_id}")
    fence = api.claim(video_id)
    assert api.records.advance(video_id, fence, JobStatus.RUNNING, progress=40)
    running = (await get(api, f"/{video_id}")).json()
    assert api.records.release(video_id, fence, counted=False)
    job = api.finish(video_id)
    done = await get(api, f"/{video_id}")
    assert waiting.json()["status"] == "queued"
    assert (running["status"], running["progress"]) == ("in_progress", 40)
    assert (done.json()["status"], done.json()["progress"]) == ("completed", 100)
    assert done.json()["completed_at"] == int(job.ended_at)
    assert done.json()["expires_at"] == int(job.ended_at + WEEK_S)
    assert int(waiting.headers["openai-poll-after-ms"]) == 1000
    assert "openai-poll-after-ms" not in done.headers


@pytest.mark.anyio
async def test_a_failed_video_says_why(api: Api) -> None:
    video_id = (await create(api))["id"]
    api.fail(video_id)
    video = (await get(api, f"/{video_id}")).json()
    assert (video["status"], video["completed_at"]) == ("failed", None)
    assert video["error"] == {"code": "gpu_out_of_memory", "message": "The GPU has too little memory."}


@pytest.mark.anyio
async def test_a_video_that_was_cancelled_elsewhere_failed(api: Api) -> None:
    video_id = (await create(api))["id"]
    await api.http.post(f"/polyreel/v1/jobs/{video_id}/cancel", headers=auth(api.key))
    video = (await get(api, f"/{video_id}")).json()
    assert video["status"] == "failed"
    assert video["error"] == {"code": "cancelled", "message": "The video was cancelled."}


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/content"), ("POST", "/remix")])
async def test_somebody_elses_video_reads_like_one_that_never_was(api: Api, method: str, path: str) -> None:
    video_id = (await create(api, key=api.other_key))["id"]
    answers = [
        await api.http.request(method, f"{VIDEOS}/{one}{path}", json={"prompt": "a"}, headers=auth(api.key))
        for one in (video_id, NO_ONE)
    ]
    assert refusal(answers[0]) == (404, "invalid_request_error", None, None)
    assert answers[0].content == answers[1].content
    assert api.records.get(video_id).job.status == "queued"


# List


@pytest.mark.anyio
async def test_the_list_goes_from_the_newest_in_pages(api: Api) -> None:
    ids = [(await create(api))["id"] for _ in range(3)]
    await create(api, key=api.other_key)
    first = (await get(api, "", limit=2)).json()
    second = (await get(api, "", limit=2, after=first["last_id"])).json()
    oldest = (await get(api, "", order="asc")).json()
    assert [video["id"] for video in first["data"]] == [ids[2], ids[1]]
    assert {name: first[name] for name in ("object", "first_id", "last_id", "has_more")} == {
        "object": "list",
        "first_id": ids[2],
        "last_id": ids[1],
        "has_more": True,
    }
    assert [video["id"] for video in second["data"]] == [ids[0]]
    assert second["has_more"] is False
    assert [video["id"] for video in oldest["data"]] == ids


@pytest.mark.anyio
async def test_an_empty_list_names_no_ids(api: Api) -> None:
    assert (await get(api, "")).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"limit": "x"}, "limit"), ({"order": "up"}, "order"),
     ({"after": NO_ONE}, "after")],
)  # fmt: skip
async def test_a_wrong_query_of_the_list_is_refused(api: Api, query: dict[str, Any], param: str) -> None:
    assert refusal(await get(api, "", **query)) == (400, "invalid_request_error", param, "invalid_value")


# Delete


@pytest.mark.anyio
async def test_deleting_a_finished_video_removes_its_record_and_its_files(api: Api) -> None:
    video_id = (await create(api))["id"]
    keys = [output.key for output in api.finish(video_id).outputs]
    assert [api.storage.size(key) for key in keys] == [17, 17, 17]
    answer = await api.http.delete(f"{VIDEOS}/{video_id}", headers=auth(api.key))
    assert (answer.status_code, answer.json()) == (
        200,
        {"id": video_id, "object": "video.deleted", "deleted": True},
    )
    assert [api.storage.size(key) for key in keys] == [None, None, None]
    assert (await get(api, f"/{video_id}")).status_code == 404
    assert (await get(api, "")).json()["data"] == []


@pytest.mark.anyio
async def test_deleting_an_unfinished_video_cancels_it_first(api: Api) -> None:
    video_id = (await create(api))["id"]
    fence = api.claim(video_id)
    answer = await api.http.delete(f"{VIDEOS}/{video_id}", headers=auth(api.key))
    assert answer.json()["deleted"] is True
    assert not api.records.advance(video_id, fence, JobStatus.RUNNING, progress=40)  # its worker is told to stop
    assert (await get(api, f"/{video_id}")).status_code == 404
    assert api.records.open_ids() == []


@pytest.mark.anyio
async def test_a_video_whose_file_is_being_made_is_deleted_a_moment_later(api: Api) -> None:
    video_id = (await create(api))["id"]
    assert api.records.advance(video_id, api.claim(video_id), JobStatus.UPLOADING, progress=99)
    answer = await api.http.delete(f"{VIDEOS}/{video_id}", headers=auth(api.key))
    assert refusal(answer) == (409, "invalid_request_error", None, "video_finishing")  # clients repeat a 409


# Content


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "media_type"),
    [("", "video/mp4"), ("?variant=video", "video/mp4"), ("?variant=thumbnail", "image/webp"),
     ("?variant=spritesheet", "image/jpeg")],
)  # fmt: skip
async def test_each_variant_is_served_with_its_type_and_in_ranges(api: Api, query: str, media_type: str) -> None:
    video_id = (await create(api))["id"]
    api.finish(video_id, b"0123456789")
    url = f"{VIDEOS}/{video_id}/content{query}"
    whole = await api.http.get(url, headers=auth(api.key))
    part = await api.http.get(url, headers=auth(api.key) | {"Range": "bytes=2-4"})
    head = await api.http.head(url, headers=auth(api.key))
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, b"0123456789", media_type)
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")


@pytest.mark.anyio
async def test_content_is_not_there_before_the_video(api: Api) -> None:
    video_id = (await create(api))["id"]
    early = await get(api, f"/{video_id}/content")
    api.fail(video_id)
    failed = await get(api, f"/{video_id}/content")
    assert refusal(early) == refusal(failed) == (404, "invalid_request_error", None, None)
    assert early.json()["error"]["message"] == (
        "Video is not ready yet, use GET /v1/videos/{video_id} to check status."
    )
    assert failed.json()["error"]["message"] == "This video failed; it has no content."


@pytest.mark.anyio
async def test_an_unknown_variant_is_refused(api: Api) -> None:
    video_id = (await create(api))["id"]
    api.finish(video_id)
    answer = await get(api, f"/{video_id}/content", variant="gif")
    assert refusal(answer) == (400, "invalid_request_error", "variant", "invalid_value")
    assert answer.json()["error"]["message"] == "variant must be one of video, thumbnail, spritesheet, got 'gif'"


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["", "/content"])
async def test_without_a_key_there_is_no_content(api: Api, path: str) -> None:
    video_id = (await create(api))["id"]
    api.finish(video_id)
    assert (await api.http.get(f"{VIDEOS}/{video_id}{path}")).status_code == 401


@pytest.mark.anyio
async def test_a_video_of_another_dialect_is_read_and_has_the_files_that_it_has(api: Api) -> None:
    request = VideoRequest(
        model="animatediff-tiny",
        prompts=(PromptSpan("dusk", 8), PromptSpan("dawn", 8)),
        height=64,
        width=96,
        fps=8,
        num_inference_steps=1,
        guidance_scale=1,
        seed=1,
        outputs=(OutputSpec("gif", 8),),
    )
    stored = await api.app.state.services.submit(request, dialect="novita", caller=Caller("alice"))
    api.finish(stored.job.id)
    video = (await get(api, f"/{stored.job.id}")).json()
    thumbnail = await get(api, f"/{stored.job.id}/content", variant="thumbnail")
    assert (video["model"], video["prompt"], video["seconds"], video["size"]) == (
        "animatediff",
        "dusk\ndawn",
        "2",
        "96x64",
    )
    assert refusal(thumbnail)[0] == 404
    assert thumbnail.json()["error"]["message"] == (
        "This video has no thumbnail: it was made through another API, as gif."
    )


@pytest.mark.anyio
async def test_the_other_dialects_show_the_video_and_leave_the_pictures_out(api: Api) -> None:
    video_id = (await create(api))["id"]
    api.finish(video_id)
    modelslab = (await api.http.post(f"/api/v6/video/fetch/{video_id}", json={"key": api.key})).json()
    novita = (await api.http.get("/v3/async/task-result", params={"task_id": video_id}, headers=auth(api.key))).json()
    assert [link.partition("?")[0].rpartition(".")[2] for link in modelslab["output"]] == ["mp4"]
    assert [video["video_type"] for video in novita["videos"]] == ["mp4"]
    assert novita["images"] == []


# Remix


@pytest.mark.anyio
async def test_a_remix_has_a_new_prompt_and_everything_else_of_its_source(api: Api) -> None:
    picture = png(64, 64)
    url = "data:image/png;base64," + picture_text(picture)
    source = await create(api, model="sora-2", seed=7, negative_prompt="blurry", input_reference={"image_url": url})
    first = api.newest().job.request
    api.finish(source["id"])
    answer = await api.http.post(f"{VIDEOS}/{source['id']}/remix", json={"prompt": "a dog"}, headers=auth(api.key))
    assert answer.status_code == 200, answer.text
    video, request = answer.json(), api.newest().job.request
    assert (video["remixed_from_video_id"], video["prompt"], video["model"]) == (source["id"], "a dog", "sora-2")
    assert (request.seed, request.negative_prompt, request.num_frames) == (7, "blurry", 9)
    assert request.prompts == (PromptSpan("a dog", 9),)
    assert (request.images, request.outputs) == (first.images, first.outputs)


@pytest.mark.anyio
async def test_a_remix_of_another_dialects_video_has_the_files_of_this_one(api: Api) -> None:
    body = {"key": api.key, "prompt": "a cat", "model_id": "ltx", "output_type": "gif", "num_frames": 9, "seed": 5}
    await api.http.post("/api/v6/video/text2video", json=body)
    source = api.newest().job.id
    api.finish(source)
    answer = await api.http.post(f"{VIDEOS}/{source}/remix", json={"prompt": "a dog"}, headers=auth(api.key))
    request = api.newest().job.request
    assert (answer.json()["model"], answer.json()["remixed_from_video_id"]) == ("ltx", source)
    assert (request.model, request.num_frames, request.seed) == ("ltx-tiny", 9, 5)
    assert [output.format for output in request.outputs] == ["mp4", "thumbnail", "spritesheet"]


@pytest.mark.anyio
async def test_a_repeated_remix_is_the_same_video_also_when_its_source_is_deleted(api: Api) -> None:
    source = (await create(api))["id"]
    api.finish(source)
    headers = auth(api.key) | {"Idempotency-Key": "one"}
    first = await api.http.post(f"{VIDEOS}/{source}/remix", json={"prompt": "a dog"}, headers=headers)
    assert (await api.http.delete(f"{VIDEOS}/{source}", headers=auth(api.key))).status_code == 200
    again = await api.http.post(f"{VIDEOS}/{source}/remix", json={"prompt": "a dog"}, headers=headers)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json()["id"] == first.json()["id"]


@pytest.mark.anyio
async def test_only_a_completed_video_is_remixed(api: Api) -> None:
    video_id = (await create(api))["id"]
    answer = await api.http.post(f"{VIDEOS}/{video_id}/remix", json={"prompt": "a dog"}, headers=auth(api.key))
    assert refusal(answer) == (400, "invalid_request_error", "video_id", "invalid_value")


@pytest.mark.anyio
async def test_a_remix_needs_a_prompt(api: Api) -> None:
    video_id = (await create(api))["id"]
    api.finish(video_id)
    answer = await api.http.post(f"{VIDEOS}/{video_id}/remix", json={}, headers=auth(api.key))
    assert refusal(answer) == (400, "invalid_request_error", "prompt", "invalid_value")


@pytest.mark.anyio
async def test_a_remix_whose_picture_is_gone_is_refused(api: Api) -> None:
    url = "data:image/png;base64," + picture_text(png(64, 64))
    video_id = (await create(api, input_reference={"image_url": url}))["id"]
    api.finish(video_id)
    api.storage.delete(picture_key(png(64, 64)))
    answer = await api.http.post(f"{VIDEOS}/{video_id}/remix", json={"prompt": "a dog"}, headers=auth(api.key))
    assert refusal(answer)[0] == 400
    assert "is not kept any more" in answer.json()["error"]["message"]


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["edits", "extensions", "characters"])
async def test_what_would_start_from_a_video_is_refused_with_what_can_be_done(api: Api, path: str) -> None:
    answer = await api.http.post(f"{VIDEOS}/{path}", json={"prompt": "a dog"}, headers=auth(api.key))
    assert refusal(answer) == (400, "invalid_request_error", None, "unsupported")
    assert "or a remix" in answer.json()["error"]["message"]


# Models


@pytest.mark.anyio
async def test_the_models_are_the_public_names_and_the_catalogues_own(api: Api) -> None:
    answer = (await api.http.get("/v1/models", headers=auth(api.key))).json()
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == [
        "wan2.2", "sora-2", "sora-2-pro", "atelier", "ltx", "ltx-tiny", "animatediff", "animatediff-tiny",
    ]  # fmt: skip
    assert answer["data"][0] == {"id": "wan2.2", "object": "model", "created": 0, "owned_by": "polyreel"}


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/models/sora-2", "/v1/models/atelier"])
async def test_a_model_is_found_by_its_name(api: Api, path: str) -> None:
    answer = await api.http.get(path, headers=auth(api.key))
    assert (answer.status_code, answer.json()["id"]) == (200, path.rpartition("/")[2])


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["sora-3", "Lightricks/LTX-Video", "Lightricks%2FLTX-Video"])
async def test_a_model_that_is_not_served_is_a_404(api: Api, name: str) -> None:
    answer = await api.http.get(f"/v1/models/{name}", headers=auth(api.key))
    assert refusal(answer) == (404, "invalid_request_error", "model", "model_not_found")


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/sora-2", "/v1/videos"])
async def test_a_wrong_key_sees_nothing(api: Api, path: str) -> None:
    answer = await api.http.get(path, headers=auth("wrong-key-0123456789"))
    assert refusal(answer) == (401, "invalid_request_error", None, "invalid_api_key")
