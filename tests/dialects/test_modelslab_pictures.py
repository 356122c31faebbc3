"""ModelsLab's img2video: a video from a picture, in base64 or behind a link."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from polyreel.catalogue import Catalogue
from polyreel.request import ImageCondition, VideoRequest, picture_key
from polyreel.settings import Settings
from server.body import validate
from server.dialects.modelslab import ModelsLabSettings, image_to_video
from server.dialects.modelslab.answers import to_wire
from server.dialects.modelslab.image_to_video import ImageToVideo
from tests.conftest import Api
from tests.core.recorder import PUBLIC
from tests.dialects.golden import Row, finished, golden, without_drawn_seed
from tests.dialects.links import LINK, answering
from tests.dialects.modelslab import IMAGE, fetch, submit
from tests.server.pictures import png

FILE_PREFIX = "2be1702e-3a1f-46ee-811c-350cee84b66e"
CLAMP_HINT = " (setting dialects.modelslab.out_of_range: clamp would adjust it)"


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("row", golden("modelslab/img2video"), ids=str)
def test_a_body_becomes_the_neutral_request_and_the_answer(row: Row, catalogue: Catalogue) -> None:
    request, meta = image_to_video.from_wire(validate(ImageToVideo, row.wire), catalogue, ModelsLabSettings())
    assert without_drawn_seed(request, row.neutral) == VideoRequest.from_dict(row.neutral)

    assert meta.pop("seed") == request.seed
    assert row.answer["meta"].pop("seed", None) == row.neutral["seed"]
    stored = finished(request, FILE_PREFIX)
    stored.job.vendor["meta"] = meta
    assert to_wire(stored, row.answer["output"], "http://api.test/fetch", 0) == row.answer


@pytest.mark.anyio
@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
async def test_a_picture_in_base64_is_the_first_frame(api: Api, head: str) -> None:
    content = png(9, 7)
    answer = await submit(api, IMAGE, prompt=None, init_image=head + in_base64(content))

    request = api.newest().job.request
    assert request.images == (ImageCondition(picture_key(content), frame_index=0, strength=1.0),)
    assert (request.prompts[0].prompt, request.num_frames) == ("", 16)
    with api.storage.open(picture_key(content)) as file:
        assert file.read() == content
    api.finish(api.newest().job.id, b"the video")
    result = await fetch(api, answer["id"])
    assert result["status"] == "success"
    assert (await api.http.get(result["output"][0])).content == b"the video"


@pytest.mark.anyio
async def test_a_picture_behind_a_link_is_fetched_and_its_link_is_told(api: Api) -> None:
    content = png(9, 7)
    recorder = answering(api, "200 OK", content)
    answer = await submit(api, IMAGE, init_image=LINK)

    assert recorder.connects == [(PUBLIC, 443)]
    assert api.newest().job.request.images == (ImageCondition(picture_key(content)),)
    assert answer["meta"]["init_image"] == LINK


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        ("404 Not Found", b"", "init_image was answered with status 404"),
        ("302 Found", b"", "init_image was answered with status 302, and redirects are not followed"),
        ("200 OK", b"no picture", "init_image must be a picture (PNG, JPEG, WEBP, GIF, BMP), got something else"),
    ],
)
async def test_a_picture_that_cannot_be_had_is_refused_in_the_documented_words_with_the_reason(
    api: Api, status: str, content: bytes, reason: str
) -> None:
    answering(api, status, content)
    response = await api.http.post(IMAGE, json={"key": api.key, "init_image": LINK})
    assert response.status_code == 400
    assert response.json() == {"status": "error", "message": f"Unable to fetch image from provided URL: {reason}"}
    assert api.records.open_ids() == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "wrong", [{"num_frames": 26}, {"webhook": "https://10.0.0.1/"}, {"key": "nobody's key"}], ids=str
)
async def test_nothing_is_fetched_for_a_request_that_is_wrong_otherwise(api: Api, wrong: dict[str, Any]) -> None:
    recorder = answering(api, "200 OK", png(9, 7))
    response = await api.http.post(IMAGE, json={"key": api.key, "init_image": LINK} | wrong)
    assert response.status_code in (400, 401)
    assert recorder.connects == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"init_image": None}, "init_image is required"),
    ({"init_image": " "}, "init_image is required"),
    ({"init_image": 7}, "init_image must be a string, got 7"),
    (
        {"init_image": "cat!"},
        "init_image must be a picture in base64 or an https:// link to one, got text that is neither",
    ),
    ({"num_frames": 26}, f"num_frames must be between 1 and 25, got 26{CLAMP_HINT}"),
    ({"fps": 17}, f"fps must be between 1 and 16, got 17{CLAMP_HINT}"),
    ({"guidance_scale": 8.5}, f"guidance_scale must be between 0 and 8, got 8.5{CLAMP_HINT}"),
    ({"min_guidance_scale": -1}, f"min_guidance_scale must be between 0 and 8, got -1{CLAMP_HINT}"),
    ({"max_guidance_scale": 8.5}, f"max_guidance_scale must be between 0 and 8, got 8.5{CLAMP_HINT}"),
    ({"noise_aug_strength": 1.1}, f"noise_aug_strength must be between 0 and 1, got 1.1{CLAMP_HINT}"),
    ({"motion_bucket_id": 1.5}, "motion_bucket_id must be an integer, got 1.5"),
    ({"output_type": "base64"}, "output_type must be one of 'mp4' or 'gif', got \"base64\""),
    ({"base64": "perhaps"}, 'base64 must be true or false, got "perhaps"'),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message[:70] for _, message in REFUSED])
async def test_a_wrong_field_is_refused_in_one_sentence(api: Api, fields: dict[str, Any], message: str) -> None:
    sent = {"key": api.key, "init_image": in_base64(png(9, 7))} | fields
    response = await api.http.post(IMAGE, json=sent)
    assert (response.status_code, response.json()) == (400, {"status": "error", "message": message})
    assert api.records.open_ids() == []


@pytest.mark.anyio
async def test_a_photograph_of_megabytes_is_taken_here_and_not_by_text2video(api: Api) -> None:
    padded = png(9, 7) + bytes(2**20)  # what follows the picture in its file does not matter
    await submit(api, IMAGE, init_image=in_base64(padded))
    response = await api.http.post("/api/v6/video/text2video", json={"key": api.key, "prompt": "x" * 2**20})
    assert response.status_code == 413


@pytest.mark.anyio
async def test_a_model_that_takes_no_picture_runs_its_companion_under_its_own_name(
    make_api: Callable[..., Api], settings: Settings
) -> None:
    models = dict(settings.models)
    models["atelier"] = models["atelier"].model_copy(update={"tasks": ("t2v",), "i2v": "ltx-tiny"})
    api = make_api(models=models, dialects={"modelslab": {"hold_s": 0}, "universal": {"endpoint_model": "ltx"}})
    answer = await submit(api, IMAGE, model_id="wan2.2", init_image=in_base64(png(8, 8)))
    assert (api.newest().job.request.model, answer["meta"]["model_id"]) == ("ltx-tiny", "wan2.2")
