"""Novita's wan-t2v and wan-i2v: the neutral request that a body means, and what the routes add."""

from __future__ import annotations

from typing import Any

import pytest

from polyreel.catalogue import Catalogue
from polyreel.entries import Adapter
from polyreel.errors import ConfigurationError, InvalidRequest, UnknownModel, UnknownRoute
from polyreel.request import AdapterUse, ImageCondition, OutputSpec, PromptSpan, VideoRequest, picture_key
from polyreel.settings import Settings
from server.body import validate
from server.dialects.novita import wan
from server.dialects.novita.settings import NovitaSettings, check, model_of
from server.dialects.novita.wan import WanTextToVideo
from tests.conftest import Api
from tests.core.recorder import PUBLIC
from tests.dialects.links import LINK, answering
from tests.server.pictures import picture_text, png

T2V, I2V, RESULT = "/v3/async/wan-t2v", "/v3/async/wan-i2v", "/v3/async/task-result"
IMG = "/v3/async/img2video"

#: The least body of each route that takes a picture, by its link.
WITH_LINK: dict[str, dict[str, Any]] = {
    I2V: {"prompt": "a red fox", "image_url": LINK},
    IMG: {
        "model_name": "SVD",
        "image_file": LINK,
        "frames_num": 14,
        "frames_per_second": 6,
        "image_file_resize_mode": "ORIGINAL_RESOLUTION",
        "steps": 20,
    },
}


def request_of(catalogue: Catalogue, settings: NovitaSettings | None = None, **fields: Any) -> VideoRequest:
    wire = validate(WanTextToVideo, {"prompt": "a red fox"} | fields)
    return wan.from_wire(wire, "atelier", catalogue, settings or NovitaSettings())


def test_a_prompt_alone_takes_every_default_of_the_page(catalogue: Catalogue) -> None:
    assert request_of(catalogue, seed=7) == VideoRequest(
        model="atelier",
        prompts=(PromptSpan("a red fox", 81),),
        height=480,
        width=832,
        fps=16,
        num_inference_steps=30,
        guidance_scale=5.0,
        flow_shift=5.0,
        seed=7,
        outputs=(OutputSpec("mp4", 16),),
    )


def test_every_field_of_the_page_becomes_part_of_the_neutral_request(settings: Settings) -> None:
    lora = Adapter(checkpoint="Remade-AI/Painting/painting.safetensors", models=("atelier",))
    catalogue = Catalogue(settings.models, {"painting": lora})
    request = request_of(
        catalogue,
        negative_prompt="blurry",
        width=720,
        height=1280,
        loras=[{"path": "Remade-AI/Painting", "scale": 4}],
        seed=9_999_999_999,
        steps=40,
        guidance_scale=10,
        flow_shift=1,
        enable_safety_checker=True,
        fast_mode=True,
        model_name="wan2.1-t2v",
        extra={"response_video_type": "gif"},
    )
    assert request == VideoRequest(
        model="atelier",
        prompts=(PromptSpan("a red fox", 81),),
        negative_prompt="blurry",
        height=1280,
        width=720,
        fps=16,
        num_inference_steps=40,
        guidance_scale=10,
        flow_shift=1.0,
        seed=9_999_999_999,
        loras=(AdapterUse("painting", 4),),
        outputs=(OutputSpec("gif", 16),),
    )


@pytest.mark.parametrize("given", [{"width": 1280}, {"height": 1280}, {"width": 1280, "height": None}])
def test_without_one_of_the_two_sides_both_are_the_default(catalogue: Catalogue, given: dict[str, Any]) -> None:
    request = request_of(catalogue, **given)
    assert (request.width, request.height) == (832, 480)


def test_hugging_faces_javascript_client_is_understood(catalogue: Catalogue) -> None:
    request = request_of(catalogue, seed=42, guidance_scale=5.5, steps=4)
    assert (request.seed, request.guidance_scale, request.num_inference_steps) == (42, 5.5, 4)


def test_the_length_is_a_setting_and_no_more_than_the_model_allows(settings: Settings) -> None:
    entry = settings.models["atelier"]
    short = entry.model_copy(update={"limits": entry.limits.model_copy(update={"num_frames": 33})})
    assert request_of(settings.catalogue, NovitaSettings(wan_num_frames=49, wan_fps=24)).num_frames == 49
    assert request_of(settings.catalogue, NovitaSettings(wan_num_frames=49, wan_fps=24)).fps == 24
    assert request_of(Catalogue({"atelier": short})).num_frames == 33


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": None}, "prompt is required"),
        ({"prompt": " "}, "prompt must not be blank"),
        ({"prompt": "a" * 2001}, "prompt must be at most 2000 characters, got 2001"),
        ({"negative_prompt": "a" * 2001}, "negative_prompt must be at most 2000 characters, got 2001"),
        (
            {"width": 512, "height": 512},
            "width and height must be one of 832x480, 480x832, 1280x720, 720x1280, got 512x512",
        ),
        ({"steps": 0}, "steps must be between 1 and 40, got 0"),
        ({"steps": 41}, "steps must be between 1 and 40, got 41"),
        ({"guidance_scale": 10.5}, "guidance_scale must be between 0 and 10, got 10.5"),
        ({"flow_shift": 0.5}, "flow_shift must be between 1 and 10, got 0.5"),
        ({"seed": -2}, "seed must be between -1 and 9999999999, got -2"),
        ({"seed": 10_000_000_000}, "seed must be between -1 and 9999999999, got 10000000000"),
        ({"loras": [{"path": "x", "scale": 4.5}]}, "loras.0.scale must be between 0 and 4, got 4.5"),
        ({"loras": [{"path": "x"}]}, "loras.0.scale is required"),
        ({"loras": [{"path": "x", "scale": 1}] * 4}, "loras must be a list of at most 3 items, got a list of 4"),
    ],
)
def test_a_wrong_field_is_refused_in_one_sentence(catalogue: Catalogue, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        request_of(catalogue, **fields)
    assert refusal.value.message == message


def test_an_unknown_lora_names_those_that_fit_and_nothing_is_downloaded(settings: Settings) -> None:
    lora = Adapter(
        checkpoint="Remade-AI/Painting/painting.safetensors", models=("atelier",), names={"novita": ("painting",)}
    )
    with pytest.raises(UnknownModel) as refusal:
        request_of(Catalogue(settings.models, {"p": lora}), loras=[{"path": "https://civitai.com/1", "scale": 1}])
    assert refusal.value.message == (
        "LoRA https://civitai.com/1 is not served here. Served: Remade-AI/Painting/painting.safetensors, painting."
    )


def test_a_lora_that_comes_twice_is_refused(settings: Settings) -> None:
    lora = Adapter(checkpoint="A/B/c.safetensors", models=("atelier",), names={"novita": ("ink",)})
    twice = [{"path": "ink", "scale": 1}, {"path": "A/B", "scale": 2}]
    with pytest.raises(InvalidRequest, match=r"loras\.1\.path: A/B comes twice; send it once"):
        request_of(Catalogue(settings.models, {"ink": lora}), loras=twice)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (1000, 1000, (624, 624)),  # 832x480 = 399,360 pixels, a square of 632
        (1920, 1080, (480, 848)),
        (1080, 1920, (848, 480)),
        (832, 480, (480, 832)),
        (4000, 64, (64, 1280)),
    ],
)
def test_a_video_of_a_picture_keeps_its_aspect_and_about_the_pixels(
    catalogue: Catalogue, width: int, height: int, size: tuple[int, int]
) -> None:
    request = wan.with_aspect_of(request_of(catalogue), width, height, 1280)
    assert (request.height, request.width) == size


@pytest.mark.anyio
async def test_a_text_makes_a_task_of_wans_own_type(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.key}"}
    response = await api.http.post(T2V, json={"prompt": "a red fox"}, headers=headers)
    assert (response.status_code, list(response.json())) == (200, ["task_id"])
    task_id = response.json()["task_id"]
    result = (await api.http.get(RESULT, params={"task_id": task_id}, headers=headers)).json()
    assert result["task"]["task_type"] == "WAN_TXT_TO_VIDEO"
    assert api.newest().job.request.flow_shift == 5.0


@pytest.mark.anyio
async def test_a_picture_and_a_text_make_a_task_with_the_pictures_aspect(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.key}"}
    body = {"prompt": "a red fox", "image_url": picture_text(png(320, 320)), "width": 480, "height": 832}
    response = await api.http.post(I2V, json=body, headers=headers)
    assert response.status_code == 200, response.text
    job = api.newest().job
    assert (job.request.width, job.request.height, job.request.images[0].frame_index) == (624, 624, 0)
    result = (await api.http.get(RESULT, params={"task_id": job.id}, headers=headers)).json()
    assert result["task"]["task_type"] == "WAN_IMG_TO_VIDEO"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("image_url", "message"),
    [
        (None, "image_url is required"),
        ("http://pictures.example/a.png", "image_url must start with https://, got http://"),
        (
            "https://127.0.0.1/a.png",
            "image_url must lead to a public address; the operator of this server can allow others (webhook_allow)",
        ),
    ],
)
async def test_a_missing_or_wrong_picture_is_refused(api: Api, image_url: str | None, message: str) -> None:
    body = {"prompt": "a fox"} | ({"image_url": image_url} if image_url else {})
    response = await api.http.post(I2V, json=body, headers={"Authorization": f"Bearer {api.key}"})
    assert (response.status_code, response.json()) == (
        400,
        {"code": 400, "reason": "INVALID_REQUEST_BODY", "message": message, "metadata": {}},
    )
    assert api.records.open_ids() == []


@pytest.mark.anyio
async def test_a_link_is_fetched_and_one_of_which_nothing_comes_is_named(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.key}"}
    recorder = answering(api, "200 OK", png(320, 320))
    response = await api.http.post(I2V, json={"prompt": "a fox", "image_url": LINK}, headers=headers)
    assert (response.status_code, recorder.connects) == (200, [(PUBLIC, 443)])
    assert api.newest().job.request.images == (ImageCondition(picture_key(png(320, 320))),)
    answering(api, "404 Not Found", b"")
    response = await api.http.post(I2V, json={"prompt": "a fox", "image_url": LINK}, headers=headers)
    assert (response.status_code, response.json()["message"]) == (400, "image_url was answered with status 404")


@pytest.mark.anyio
@pytest.mark.parametrize("path", [I2V, IMG])
@pytest.mark.parametrize(
    "wrong",
    [{"steps": 51}, {"seed": -2}, {"extra": {"webhook": {"url": "https://10.0.0.1/"}}}],
    ids=["steps", "seed", "webhook"],
)
async def test_nothing_is_fetched_for_a_request_that_is_wrong_otherwise(
    api: Api, path: str, wrong: dict[str, Any]
) -> None:
    recorder = answering(api, "200 OK", png(64, 64))
    headers = {"Authorization": f"Bearer {api.key}"}
    response = await api.http.post(path, json=WITH_LINK[path] | wrong, headers=headers)
    assert (response.status_code, recorder.connects) == (400, [])


def test_the_endpoints_take_the_first_model_that_can_or_the_one_that_is_set(catalogue: Catalogue) -> None:
    assert model_of("wan-t2v", catalogue, NovitaSettings()) == "atelier"
    assert model_of("img2video", catalogue, NovitaSettings(img2video_model="animatediff-tiny")) == "animatediff-tiny"


def test_an_endpoint_that_no_model_can_run_is_not_there(settings: Settings) -> None:
    catalogue = Catalogue({"ltx-tiny": settings.models["ltx-tiny"]})
    with pytest.raises(UnknownRoute, match=r"No model of this server can run wan-t2v\."):
        model_of("wan-t2v", catalogue, NovitaSettings())


def test_a_setting_that_names_a_model_that_cannot_stops_the_start(catalogue: Catalogue) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        check(catalogue, NovitaSettings(wan_i2v_model="atelir"))
    assert refusal.value.message == (
        "dialects.novita.wan_i2v_model: 'atelir' is not a model with the task i2v. Did you mean atelier? "
        "Those that are: atelier, ltx-tiny, animatediff-tiny."
    )
