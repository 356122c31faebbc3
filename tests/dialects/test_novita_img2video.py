"""Novita's img2video: a picture that is animated without a prompt."""

from __future__ import annotations

from typing import Any

import pytest

from polyreel.catalogue import Catalogue
from polyreel.errors import InvalidRequest
from polyreel.request import ImageCondition, OutputSpec, PromptSpan, VideoRequest
from server.body import validate
from server.dialects.novita import img2video
from server.dialects.novita.img2video import ImageToVideo
from tests.conftest import Api
from tests.server.pictures import picture_text, png

#: The page's own example.
PAGE: dict[str, Any] = {
    "model_name": "SVD-XT",
    "image_file": "{{Base64 encoded image}}",
    "frames_num": 25,
    "frames_per_second": 6,
    "seed": 20231127,
    "image_file_resize_mode": "CROP_TO_ASPECT_RATIO",
    "steps": 20,
}


def request_of(catalogue: Catalogue, width: int = 1600, height: int = 900, **fields: Any) -> VideoRequest:
    wire = validate(ImageToVideo, PAGE | fields)
    video = img2video.from_wire(wire, "atelier", catalogue)
    return img2video.with_size_of(video, width, height, wire.image_file_resize_mode)


def test_the_pages_example_becomes_the_neutral_request(catalogue: Catalogue) -> None:
    assert request_of(catalogue) == VideoRequest(
        model="atelier",
        prompts=(PromptSpan("", 25),),
        height=576,
        width=1024,
        fps=6,
        num_inference_steps=20,
        guidance_scale=5.0,
        seed=20231127,
        outputs=(OutputSpec("mp4", 6),),
    )


@pytest.mark.parametrize(
    ("mode", "picture", "size"),
    [
        ("CROP_TO_ASPECT_RATIO", (300, 300), (576, 1024)),
        ("CROP_TO_ASPECT_RATIO", (900, 1600), (1024, 576)),
        ("ORIGINAL_RESOLUTION", (640, 480), (480, 640)),
        ("ORIGINAL_DIMENSION", (640, 480), (480, 640)),  # the official Python client's word
        ("ORIGINAL_RESOLUTION", (2048, 1152), (576, 1024)),
        ("ORIGINAL_RESOLUTION", (1000, 2000), (1024, 512)),
    ],
)
def test_the_video_has_the_size_that_the_resize_mode_says(
    catalogue: Catalogue, mode: str, picture: tuple[int, int], size: tuple[int, int]
) -> None:
    request = request_of(catalogue, *picture, image_file_resize_mode=mode)
    assert (request.height, request.width) == size


@pytest.mark.parametrize(("model", "frames", "smooth"), [("SVD", 14, 53), ("SVD-XT", 25, 97)])
def test_interpolation_makes_the_frames_in_between_for_24_a_second(
    catalogue: Catalogue, model: str, frames: int, smooth: int
) -> None:
    plain = request_of(catalogue, model_name=model, frames_num=frames)
    request = request_of(catalogue, model_name=model, frames_num=frames, enable_frame_interpolation=True)
    assert (plain.num_frames, plain.fps) == (frames, 6)
    assert (request.num_frames, request.fps, request.outputs) == (smooth, 24, (OutputSpec("mp4", 24),))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_name": "SVD-XXL"}, "model_name must be one of 'SVD' or 'SVD-XT', got \"SVD-XXL\""),
        ({"frames_num": 14}, "frames_num must be 25 for SVD-XT, got 14"),
        ({"model_name": "SVD"}, "frames_num must be 14 for SVD, got 25"),
        ({"frames_per_second": 8}, "frames_per_second must be 6, got 8"),
        ({"steps": 51}, "steps must be between 1 and 50, got 51"),
        ({"motion_bucket_id": 256}, "motion_bucket_id must be between 1 and 255, got 256"),
        ({"cond_aug": 1.5}, "cond_aug must be between 0 and 1, got 1.5"),
        ({"seed": -2}, "seed must be between -1 and 9223372036854775807, got -2"),
    ],
)
def test_a_wrong_field_is_refused_in_one_sentence(catalogue: Catalogue, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        request_of(catalogue, **fields)
    assert refusal.value.message == message


@pytest.mark.anyio
@pytest.mark.parametrize(("cond_aug", "strength"), [(None, 1.0), (0.25, 0.75)])
async def test_the_noise_on_the_picture_is_how_loosely_it_is_followed(
    api: Api, cond_aug: float | None, strength: float
) -> None:
    body = PAGE | {"image_file": picture_text(png(64, 36)), "cond_aug": cond_aug}
    headers = {"Authorization": f"Bearer {api.key}"}
    response = await api.http.post("/v3/async/img2video", json=body, headers=headers)
    assert response.status_code == 200, response.text
    job = api.newest().job
    assert job.request.images == (ImageCondition(job.request.images[0].key, 0, strength),)
    answer = await api.http.get("/v3/async/task-result", params={"task_id": job.id}, headers=headers)
    assert answer.json()["task"]["task_type"] == "IMG_TO_VIDEO"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        (
            picture_text(png(64, 36)[:60]),
            "INVALID_IMAGE_FORMAT",
            "image_file is a damaged picture; send it again whole",
        ),
        (
            picture_text(b"<svg/>"),
            "INVALID_IMAGE_FORMAT",
            "image_file must be a picture (PNG, JPEG, WEBP, GIF, BMP), got something else",
        ),
        (
            picture_text(png(5001, 5000)),
            "IMAGE_EXCEEDS_MAX_RESOLUTION",
            "image_file must have at most 25000000 pixels, got 5001x5000 = 25005000",
        ),
        (
            picture_text(bytes(15_000_001)),
            "IMAGE_FILE_EXCEEDS_MAX_SIZE",
            "image_file must be a picture of at most 15000000 bytes, got 15000001",
        ),
        (
            "{{Base64}}",
            "INVALID_REQUEST_BODY",
            "image_file must be a picture in base64 or an https:// link to one, got text that is neither",
        ),
    ],
    ids=["damaged", "no picture", "pixels", "bytes", "no base64"],
)
async def test_a_picture_that_cannot_be_used_has_a_reason_of_its_own(
    api: Api, text: str, reason: str, message: str
) -> None:
    headers = {"Authorization": f"Bearer {api.key}"}
    response = await api.http.post("/v3/async/img2video", json=PAGE | {"image_file": text}, headers=headers)
    assert response.status_code == 400
    assert response.json() == {"code": 400, "reason": reason, "message": message, "metadata": {}}
