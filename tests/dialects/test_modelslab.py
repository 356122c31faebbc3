"""ModelsLab v6, as its documents and real clients speak it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from pydantic import SecretStr

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.catalogue import Catalogue
from polyreel.errors import QueueUnavailable, TooManyJobs
from polyreel.job import JobStatus
from polyreel.request import Upscale, VideoRequest
from server.body import validate
from server.dialects.modelslab import ModelsLabSettings, text_to_video
from server.dialects.modelslab.answers import to_wire
from server.dialects.modelslab.refusals import render_error
from server.dialects.modelslab.text_to_video import TextToVideo
from server.services import Services
from tests.conftest import Api
from tests.dialects.golden import Row, finished, golden, without_drawn_seed

SUBMIT, FETCH = "/api/v6/video/text2video", "/api/v6/video/fetch"
FILE_PREFIX = "2be1702e-3a1f-46ee-811c-350cee84b66e"
CLAMP_HINT = " (setting dialects.modelslab.out_of_range: clamp would adjust it)"


def body(api: Api, **fields: Any) -> dict[str, Any]:
    return {"key": api.key, "prompt": "A sunset over the ocean", **fields}


async def submit(api: Api, **fields: Any) -> dict[str, Any]:
    response = await api.http.post(SUBMIT, json=body(api, **fields))
    assert response.status_code == 200, response.text
    return dict(response.json())


async def fetch(api: Api, job_id: object, status: int = 200) -> dict[str, Any]:
    response = await api.http.post(f"{FETCH}/{job_id}", json={"key": api.key})
    assert response.status_code == status, response.text
    return dict(response.json())


@pytest.mark.anyio
async def test_the_documented_loop_ends_with_a_link_to_the_video(api: Api) -> None:
    submitted = await submit(api, num_frames=25)
    assert submitted["status"] == "processing"
    assert (await fetch(api, submitted["id"]))["status"] == "processing"
    api.finish(api.newest().job.id, b"mp4 bytes")
    result = await fetch(api, submitted["id"])
    assert result["status"] == "success"
    assert result["output"] == submitted["future_links"] == result["proxy_links"]
    assert (await api.http.get(result["output"][0])).content == b"mp4 bytes"


# The two translations


@pytest.mark.parametrize("row", golden("modelslab"), ids=str)
def test_a_body_becomes_the_neutral_request_and_the_answer(row: Row, catalogue: Catalogue) -> None:
    request, meta = text_to_video.from_wire(validate(TextToVideo, row.wire), catalogue, ModelsLabSettings())
    assert without_drawn_seed(request, row.neutral) == VideoRequest.from_dict(row.neutral)

    assert meta.pop("seed") == request.seed
    assert row.answer["meta"].pop("seed", None) == row.neutral["seed"]
    stored = finished(request, FILE_PREFIX)
    stored.job.vendor["meta"] = meta
    answer = to_wire(stored, row.answer["output"], "http://api.test/fetch", 0)
    assert answer == row.answer


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, None),
        ({"upscale_strength": 0.5}, None),
        ({"upscale_height": 1024, "upscale_width": 768}, (1024, 768)),
        ({"upscale_height": 1024}, (1024, 1024)),
        ({"upscale_width": 1000, "height": 320, "width": 512}, (625, 1000)),
        ({"upscale_height": 999, "height": 512, "width": 256}, (999, 500)),
    ],
)
def test_upscaling_takes_both_sides_or_keeps_the_aspect_of_one(
    fields: dict[str, Any], size: tuple[int, int] | None, catalogue: Catalogue
) -> None:
    wire = validate(TextToVideo, {"prompt": "a cat", **fields})
    request, meta = text_to_video.from_wire(wire, catalogue, ModelsLabSettings())

    assert (request.upscale and (request.upscale.height, request.upscale.width)) == size
    assert (meta["upscale_height"], meta["upscale_width"]) == (size or (None, None))


def test_upscaling_has_the_documented_defaults(catalogue: Catalogue) -> None:
    wire = validate(TextToVideo, {"prompt": "a cat", "upscale_height": 768, "upscale_width": 768})
    request, _ = text_to_video.from_wire(wire, catalogue, ModelsLabSettings())

    assert request.upscale == Upscale(768, 768, strength=0.6, guidance_scale=12, num_inference_steps=20)


@pytest.mark.parametrize(
    ("model_id", "fields", "seed"),
    [
        ("animatediff", {"use_improved_sampling": True}, 42),
        ("animatediff", {"use_improved_sampling": "yes", "improved_sampling_seed": 7}, 7),
        ("animatediff", {"improved_sampling_seed": 7}, None),
        ("wan2.2", {"use_improved_sampling": True}, None),
    ],
)
def test_improved_sampling_has_its_own_seed_on_models_that_have_it(
    model_id: str, fields: dict[str, Any], seed: int | None, catalogue: Catalogue
) -> None:
    wire = validate(TextToVideo, {"prompt": "a cat", "model_id": model_id, **fields})
    request, meta = text_to_video.from_wire(wire, catalogue, ModelsLabSettings())

    assert request.improved_sampling_seed == seed
    assert meta["use_improved_sampling"] == ("yes" if "use_improved_sampling" in fields else "no")
    assert meta["improved_sampling_seed"] == fields.get("improved_sampling_seed", 42)


# Fields

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt is required"),
    ({"prompt": "  "}, "prompt must not be blank"),
    ({"prompt": 5}, "prompt must be a string, got 5"),
    ({"height": 63}, f"height must be between 64 and 512, got 63{CLAMP_HINT}"),
    ({"height": 513}, f"height must be between 64 and 512, got 513{CLAMP_HINT}"),
    ({"width": 63}, f"width must be between 64 and 512, got 63{CLAMP_HINT}"),
    ({"width": 1024}, f"width must be between 64 and 512, got 1024{CLAMP_HINT}"),
    ({"width": "wide"}, 'width must be an integer, got "wide"'),
    ({"num_frames": 0}, f"num_frames must be between 1 and 25, got 0{CLAMP_HINT}"),
    ({"num_frames": 30}, f"num_frames must be between 1 and 25, got 30{CLAMP_HINT}"),
    ({"num_frames": 16.5}, "num_frames must be an integer, got 16.5"),
    ({"num_frames": True}, "num_frames must be a number, got true"),
    ({"num_inference_steps": 0}, f"num_inference_steps must be between 1 and 50, got 0{CLAMP_HINT}"),
    ({"num_inference_steps": 51}, f"num_inference_steps must be between 1 and 50, got 51{CLAMP_HINT}"),
    ({"guidance_scale": -0.1}, f"guidance_scale must be between 0 and 8, got -0.1{CLAMP_HINT}"),
    ({"guidance_scale": 8.5}, f"guidance_scale must be between 0 and 8, got 8.5{CLAMP_HINT}"),
    ({"clip_skip": -1}, f"clip_skip must be between 0 and 2, got -1{CLAMP_HINT}"),
    ({"clip_skip": 3}, f"clip_skip must be between 0 and 2, got 3{CLAMP_HINT}"),
    ({"fps": 0}, f"fps must be between 1 and 16, got 0{CLAMP_HINT}"),
    ({"fps": 17}, f"fps must be between 1 and 16, got 17{CLAMP_HINT}"),
    ({"upscale_strength": 1.1}, f"upscale_strength must be between 0 and 1, got 1.1{CLAMP_HINT}"),
    ({"upscale_guidance_scale": 21}, f"upscale_guidance_scale must be between 0 and 20, got 21{CLAMP_HINT}"),
    (
        {"upscale_num_inference_steps": 51},
        f"upscale_num_inference_steps must be between 1 and 50, got 51{CLAMP_HINT}",
    ),
    ({"upscale_height": 1025}, f"upscale_height must be between 64 and 1024, got 1025{CLAMP_HINT}"),
    ({"upscale_width": 1025}, f"upscale_width must be between 64 and 1024, got 1025{CLAMP_HINT}"),
    (
        {"height": 256, "upscale_height": 640},
        "upscale_width must be between 64 and 1024, got 1280, as the aspect of the video asks; send both sides",
    ),
    (
        {"width": 256, "upscale_width": 640},
        "upscale_height must be between 64 and 1024, got 1280, as the aspect of the video asks; send both sides",
    ),
    ({"improved_sampling_seed": -2}, "improved_sampling_seed must be between -1 and 9223372036854775807, got -2"),
    ({"seed": -2}, "seed must be between -1 and 9223372036854775807, got -2"),
    ({"seed": 2**63}, "seed must be between -1 and 9223372036854775807, got 9223372036854775808"),
    ({"output_type": "webm"}, "output_type must be one of 'mp4' or 'gif', got \"webm\""),
    ({"temp": "perhaps"}, 'temp must be true or false, got "perhaps"'),
    ({"use_improved_sampling": 2}, "use_improved_sampling must be true or false, got 2"),
    ({"webhook": "http://example.com/hook"}, "webhook must start with https://, got http://"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message[:70] for _, message in REFUSED])
async def test_a_wrong_field_is_refused_in_one_sentence(api: Api, fields: dict[str, Any], message: str) -> None:
    response = await api.http.post(SUBMIT, json=body(api, **fields))
    assert response.status_code == 400
    assert response.json() == {"status": "error", "message": message}
    assert api.records.open_ids() == []


CLAMPED = [
    ({"height": 1024, "width": 8}, {"height": 512, "width": 64}),
    ({"num_frames": 30}, {"num_frames": 25}),
    ({"num_frames": -3}, {"num_frames": 1}),
    ({"num_inference_steps": 100}, {"num_inference_steps": 50}),
    ({"guidance_scale": 9.5}, {"guidance_scale": 8}),
    ({"fps": 24}, {"fps": 16}),
    ({"clip_skip": 12}, {"clip_skip": 2}),
    ({"guidance_scale": 7.5, "num_frames": 24}, {"guidance_scale": 7.5, "num_frames": 24}),
]


@pytest.mark.parametrize(("sent", "runs"), CLAMPED)
def test_the_clamp_setting_takes_the_nearest_allowed_value(
    sent: dict[str, float], runs: dict[str, float], catalogue: Catalogue
) -> None:
    request, meta = text_to_video.from_wire(
        validate(TextToVideo, {"prompt": "x"} | sent), catalogue, ModelsLabSettings(out_of_range="clamp")
    )
    assert {name: getattr(request, name) for name in runs} == runs
    assert {name: meta[name] for name in runs} == runs


@pytest.mark.parametrize("truth", [True, "yes", "TRUE", "true", 1])
@pytest.mark.parametrize("field", ["use_improved_sampling", "instant_response", "temp"])
def test_a_true_boolean_is_echoed_as_yes(field: str, truth: object, catalogue: Catalogue) -> None:
    wire = validate(TextToVideo, {"prompt": "x", field: truth})
    assert text_to_video.from_wire(wire, catalogue, ModelsLabSettings())[1][field] == "yes"


@pytest.mark.parametrize("untruth", [False, "no", "FALSE", 0, None])
@pytest.mark.parametrize("field", ["use_improved_sampling", "instant_response", "temp"])
def test_a_false_boolean_is_echoed_as_no(field: str, untruth: object, catalogue: Catalogue) -> None:
    wire = validate(TextToVideo, {"prompt": "x", field: untruth})
    assert text_to_video.from_wire(wire, catalogue, ModelsLabSettings())[1][field] == "no"


@pytest.mark.parametrize("seed", [None, -1, "-1"])
def test_a_seed_that_is_not_given_is_drawn_and_reported(seed: object, catalogue: Catalogue) -> None:
    request, meta = text_to_video.from_wire(
        validate(TextToVideo, {"prompt": "x", "seed": seed}), catalogue, ModelsLabSettings()
    )
    assert 0 <= request.seed < 2**32
    assert meta["seed"] == request.seed


@pytest.mark.parametrize("track_id", ["order-7", 7, None])
def test_track_id_is_echoed_as_given(track_id: object, catalogue: Catalogue) -> None:
    wire = validate(TextToVideo, {"prompt": "x", "track_id": track_id})
    assert text_to_video.from_wire(wire, catalogue, ModelsLabSettings())[1]["track_id"] == track_id


@pytest.mark.parametrize(
    ("model_id", "entry", "echoed"),
    [
        (None, "wan-tiny", "wan2.2"),
        ("", "wan-tiny", "wan2.2"),
        ("zeroscope", "wan-tiny", "wan2.2"),
        ("wan2.2", "wan-tiny", "wan2.2"),
        ("wanx", "wan-tiny", "wanx"),
        ("cogvideox", "wan-tiny", "cogvideox"),
        ("ltx", "ltx-tiny", "ltx"),
        ("ltx-2.3", "ltx-tiny", "ltx-2.3"),
        ("LTX", "ltx-tiny", "LTX"),
        ("animatediff", "animatediff-tiny", "animatediff"),
    ],
)
def test_a_model_id_is_never_an_error(model_id: str | None, entry: str, echoed: str, catalogue: Catalogue) -> None:
    wire = validate(TextToVideo, {"prompt": "x", "model_id": model_id})
    request, meta = text_to_video.from_wire(wire, catalogue, ModelsLabSettings())
    assert (request.model, meta["model_id"]) == (entry, echoed)


def test_the_operator_chooses_the_default_format_and_model(catalogue: Catalogue) -> None:
    settings = ModelsLabSettings(default_output_type="mp4", default_model="ltx")
    request, meta = text_to_video.from_wire(validate(TextToVideo, {"prompt": "x"}), catalogue, settings)
    assert (request.outputs[0].format, meta["output_type"]) == ("mp4", "mp4")
    assert (request.model, meta["model_id"]) == ("ltx-tiny", "ltx")


# Keys


@pytest.mark.anyio
@pytest.mark.parametrize("header", [{"Authorization": "Bearer {key}"}, {"key": "{key}"}, {"Key": "{key}"}])
async def test_the_key_may_come_in_a_header(api: Api, header: dict[str, str]) -> None:
    headers = {name: value.format(key=api.key) for name, value in header.items()}
    submitted = await api.http.post(SUBMIT, json={"prompt": "x"}, headers=headers)
    assert submitted.status_code == 200
    fetched = await api.http.post(f"{FETCH}/{submitted.json()['id']}", headers=headers)
    assert fetched.json()["status"] == "processing"


@pytest.mark.anyio
async def test_the_key_in_the_body_comes_before_the_header(api: Api) -> None:
    response = await api.http.post(
        SUBMIT, json={"prompt": "x", "key": "nope"}, headers={"Authorization": f"Bearer {api.key}"}
    )
    assert (response.status_code, response.json()) == (401, {"status": "error", "message": "Invalid API key"})


@pytest.mark.anyio
@pytest.mark.parametrize("key", [None, ""])
async def test_a_missing_key_is_asked_for(api: Api, key: str | None) -> None:
    response = await api.http.post(SUBMIT, json={"prompt": "x", "key": key})
    assert (response.status_code, response.json()) == (401, {"status": "error", "message": "API key required"})


@pytest.mark.anyio
async def test_no_answer_repeats_the_key(api: Api) -> None:
    submitted = await api.http.post(SUBMIT, json=body(api))
    api.finish(api.newest().job.id)
    fetched = await api.http.post(f"{FETCH}/{submitted.json()['id']}", json={"key": api.key})
    assert api.key not in submitted.text + fetched.text


# Answers


@pytest.mark.anyio
async def test_a_processing_answer_has_every_documented_key(api: Api) -> None:
    answer = await submit(api, seed=7)
    job_id = api.newest().job.id
    links = answer.pop("future_links")
    assert len(links) == 1
    assert links[0].startswith(f"http://api.test/files/out/{job_id}/{job_id}.gif?exp=")
    assert answer.pop("meta")["file_prefix"] == job_id
    assert answer == {
        "status": "processing",
        "tip": "Your video is processing in background, you can get this video using fetch API",
        "eta": 10,
        "message": "Try to fetch request after seconds estimated",
        "fetch_result": f"http://api.test/api/v6/video/fetch/{answer['id']}",
        "id": api.newest().number,
        "output": [],
    }
    assert type(answer["id"]) is int
    assert type(answer["eta"]) is int


@pytest.mark.anyio
@pytest.mark.parametrize(
    "status",
    [JobStatus.QUEUED, JobStatus.LOADING, JobStatus.RUNNING, JobStatus.ENCODING, JobStatus.UPLOADING],
)
async def test_every_state_before_the_end_is_processing(api: Api, status: JobStatus) -> None:
    submitted = await submit(api)
    job_id = api.newest().job.id
    if status is not JobStatus.QUEUED:
        api.records.advance(job_id, api.claim(job_id), status, progress=40)
    answer = await fetch(api, submitted["id"])
    assert answer["status"] == "processing"
    assert {**answer, "eta": 0} == {**submitted, "eta": 0}


@pytest.mark.anyio
async def test_a_fetched_success_has_no_future_links(api: Api) -> None:
    submitted = await submit(api)
    api.finish(api.newest().job.id)
    answer = await fetch(api, submitted["id"])
    assert list(answer) == ["status", "generationTime", "id", "output", "proxy_links", "meta"]
    assert type(answer["generationTime"]) is float
    assert answer["meta"] == submitted["meta"]


@pytest.mark.anyio
async def test_the_links_are_the_same_in_every_answer_whatever_the_host(api: Api) -> None:
    submitted = await submit(api)
    api.finish(api.newest().job.id)
    response = await api.http.post(
        f"{FETCH}/{submitted['id']}", json={"key": api.key}, headers={"Host": "other.example"}
    )
    assert response.json()["output"] == submitted["future_links"]


@pytest.mark.anyio
async def test_a_failed_job_is_failed_with_status_200(api: Api) -> None:
    submitted = await submit(api)
    api.fail(api.newest().job.id, "The GPU has too little memory.")
    assert await fetch(api, submitted["id"]) == {
        "status": "failed",
        "id": submitted["id"],
        "message": "The GPU has too little memory.",
        "output": [],
    }


@pytest.mark.anyio
async def test_a_cancelled_job_is_failed(api: Api) -> None:
    submitted = await submit(api)
    api.records.advance(api.newest().job.id, None, JobStatus.CANCELLED)
    answer = await fetch(api, submitted["id"])
    assert (answer["status"], answer["message"]) == ("failed", "The job was cancelled.")


@pytest.mark.anyio
async def test_a_job_can_be_fetched_by_its_uuid(api: Api) -> None:
    submitted = await submit(api)
    assert (await fetch(api, api.newest().job.id))["id"] == submitted["id"]


@pytest.mark.anyio
async def test_another_owners_job_reads_exactly_as_one_that_never_was(api: Api) -> None:
    submitted = await submit(api)
    theirs = await api.http.post(f"{FETCH}/{submitted['id']}", json={"key": api.other_key})
    nobodys = await api.http.post(f"{FETCH}/1", json={"key": api.other_key})
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.content == nobodys.content
    assert theirs.json() == {"status": "failed", "message": "Request not found", "id": "", "output": []}


@pytest.mark.anyio
@pytest.mark.parametrize("job_id", ["0", "-1", "x", "1.5", "9" * 40, "00000000-0000-4000-8000-000000000000", "é"])
async def test_any_text_can_be_fetched_and_is_unknown(api: Api, job_id: str) -> None:
    assert (await fetch(api, job_id, 404))["status"] == "failed"


@pytest.mark.anyio
async def test_a_job_of_another_dialect_can_be_fetched(api: Api) -> None:
    wire = {
        "model_name": "darkSushiMixMix_225D_64380.safetensors",
        "height": 256,
        "width": 256,
        "steps": 8,
        "prompts": [{"frames": 8, "prompt": "a cat"}],
        "seed": 7,
    }
    await api.http.post("/v3/async/txt2video", json=wire, headers={"Authorization": api.key})
    job_id = api.newest().job.id
    api.finish(job_id)
    answer = await fetch(api, job_id)
    assert answer["status"] == "success"
    assert answer["meta"] == {
        "prompt": "a cat",
        "negative_prompt": "",
        "model_id": "animatediff-tiny",
        "height": 256,
        "width": 256,
        "num_frames": 8,
        "num_inference_steps": 8,
        "guidance_scale": 7.5,
        "clip_skip": None,
        "fps": 8,
        "seed": 7,
        "output_type": "mp4",
        "upscale_height": None,
        "upscale_width": None,
        "upscale_strength": 0.6,
        "upscale_guidance_scale": 12,
        "upscale_num_inference_steps": 20,
        "use_improved_sampling": "no",
        "improved_sampling_seed": 42,
        "instant_response": "no",
        "temp": "no",
        "base64": "no",
        "watermark": "no",
        "webhook": None,
        "track_id": None,
        "id": answer["id"],
        "file_prefix": job_id,
    }


# Waiting


async def finish_the_next(api: Api) -> None:
    while not api.records.open_ids():  # noqa: ASYNC110 the record is in Redis, which sets no event
        await anyio.sleep(0.01)
    api.finish(api.newest().job.id)


@pytest.mark.anyio
async def test_a_submit_is_held_until_the_video_is_ready(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 10}})
    async with anyio.create_task_group() as group:
        group.start_soon(finish_the_next, api)
        answer = await submit(api)
    assert answer["status"] == "success"
    assert answer["eta"] == 0
    assert answer["future_links"] == answer["output"] == answer["proxy_links"]


@pytest.mark.anyio
async def test_a_submit_that_is_not_ready_in_time_is_processing(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 0.2}})
    assert (await submit(api))["status"] == "processing"


@pytest.mark.anyio
async def test_instant_response_does_not_wait(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 60}})
    with anyio.fail_after(5):
        answer = await submit(api, instant_response=True)
    assert (answer["status"], answer["meta"]["instant_response"]) == ("processing", "yes")


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A Valkey that a test may harm."""
    broker = start_embedded(tmp_path / "valkey")
    yield broker
    broker.process.send_signal(signal.SIGCONT)
    broker.stop()


def kill(broker: EmbeddedBroker) -> None:
    broker.process.send_signal(signal.SIGKILL)


def hang(broker: EmbeddedBroker) -> None:
    broker.process.send_signal(signal.SIGSTOP)


def forget(broker: EmbeddedBroker) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.flushall()


@pytest.mark.anyio
@pytest.mark.parametrize("harm", [kill, hang, forget])
async def test_a_client_learns_its_id_also_when_redis_goes_away_while_it_is_held(
    make_api: Callable[..., Api], own_broker: EmbeddedBroker, harm: Callable[[EmbeddedBroker], None]
) -> None:
    api = make_api(redis_url=SecretStr(own_broker.url), dialects={"modelslab": {"hold_s": 60}})
    answers, numbers, harmed_at = [], [], []

    async def harm_after_submit() -> None:
        with redis.Redis.from_url(own_broker.url, decode_responses=True) as client:
            while not client.zcard("polyreel:open"):  # noqa: ASYNC110 the record sets no event
                await anyio.sleep(0.01)
            await anyio.sleep(0.1)
            numbers.append(int(str(client.get("polyreel:number"))))
        harmed_at.append(time.monotonic())
        harm(own_broker)

    async with anyio.create_task_group() as group:
        group.start_soon(harm_after_submit)
        answers.append(await submit(api))
    assert (answers[0]["status"], answers[0]["id"]) == ("processing", numbers[0])
    assert answers[0]["fetch_result"].endswith(f"/fetch/{numbers[0]}")
    assert answers[0]["eta"] == 10
    assert time.monotonic() - harmed_at[0] < 6


@pytest.mark.anyio
async def test_an_estimate_that_redis_does_not_give_is_guessed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> int:
        raise QueueUnavailable("The queue does not answer right now.")

    monkeypatch.setattr(Services, "eta_s", away)
    submitted = await submit(api, instant_response=True)
    assert (submitted["status"], submitted["eta"]) == ("processing", 10)
    assert (await fetch(api, submitted["id"]))["eta"] == 10


@pytest.mark.anyio
async def test_an_estimate_that_hangs_is_guessed_within_seconds(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(*_: object) -> int:
        await anyio.sleep(60)
        return 60

    monkeypatch.setattr(Services, "eta_s", hangs)
    with anyio.fail_after(3):
        assert (await submit(api, instant_response=True))["eta"] == 10


@pytest.mark.anyio
@pytest.mark.parametrize(("temp", "kept_s"), [(True, 24 * 3600), (False, 7 * 24 * 3600)])
async def test_a_temporary_video_is_linked_for_a_day(api: Api, temp: bool, kept_s: int) -> None:
    answer = await submit(api, temp=temp)
    expires_at = int(answer["future_links"][0].partition("exp=")[2].partition("&")[0])
    assert expires_at == int(api.newest().job.created_at + kept_s)


# Errors


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


def test_a_full_queue_says_when_to_come_back() -> None:
    response = render_error(TooManyJobs("The queue is full.", retry_after_s=30), ModelsLabSettings())
    assert (response.status_code, response.headers["Retry-After"]) == (429, "30")
    assert json.loads(bytes(response.body)) == {
        "status": "error",
        "message": "Rate limit exceeded. The queue is full.",
        "retry_after": 30,
    }


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
