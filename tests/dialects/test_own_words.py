"""Refusals of the catalogue, which knows no vendor, name fields as the client called them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polyreel.entries import ServedModel, Task
from tests.conftest import KEY, Api
from tests.server.pictures import picture_text, png

pytestmark = pytest.mark.anyio

PICTURE = picture_text(png(64, 64))

MODELSLAB = {"key": KEY, "prompt": "a fox", "model_id": "fox"}
NOVITA = {"model_name": "fox", "height": 256, "width": 256, "steps": 4, "prompts": [{"frames": 8, "prompt": "a"}]}
NATIVE = {"prompt": "a fox", "model": "fox"}


def serving(make_api: Callable[..., Api], task: Task) -> Api:
    """Return an API whose one model can do this alone, and is called fox by every dialect."""
    names = dict.fromkeys(("huggingface", "universal", "modelslab", "openai", "novita"), ("fox",))
    fox = ServedModel(family="wan", checkpoint="tiny:wan-ti2v", tasks=(task,), names=names)
    sections = {"modelslab": {"hold_s": 0, "default_model": "fox"}, "universal": {"endpoint_model": "fox"}}
    return make_api(models={"fox": fox}, loras={}, embeddings={}, dialects=sections)


def said(answer: Any) -> str:
    """Return the sentence of a refusal, whatever its envelope."""
    body = answer.json()
    error = body.get("error", body)
    return str(error if isinstance(error, str) else error.get("message") or error.get("detail") or error)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/models/fox/pipeline/image-to-video", {"inputs": PICTURE}, "inputs"),
        ("/", {"inputs": {"prompt": "a fox", "image": PICTURE}}, "inputs.image"),
        ("/api/v6/video/img2video", MODELSLAB | {"init_image": PICTURE}, "init_image"),
        ("/v1/videos", NATIVE | {"input_reference": f"data:image/png;base64,{PICTURE}"}, "input_reference"),
        ("/polyreel/v1/jobs", NATIVE | {"image": PICTURE}, "image"),
        ("/polyreel/v1/jobs", NATIVE | {"last_image": PICTURE, "image": PICTURE}, "last_image"),
        ("/polyreel/v1/jobs", NATIVE | {"keyframes": [{"frame_index": 1, "image": PICTURE}]}, "keyframes"),
        (
            "/api/v6/video/text2video",
            MODELSLAB | {"upscale_height": 640},
            "upscale_height, upscale_width",
        ),
        ("/v3/async/txt2video", NOVITA | {"closed_loop": True}, "closed_loop"),
    ],
)
async def test_what_a_model_cannot_do_is_refused_by_the_clients_field(
    make_api: Callable[..., Api], path: str, body: dict[str, Any], field: str
) -> None:
    api = serving(make_api, "t2v")
    answer = await api.http.post(path, json=body, headers={"Authorization": f"Bearer {api.key}"})
    assert answer.status_code in (400, 422)
    assert said(answer).startswith(f"{field}: fox cannot do this"), said(answer)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/videos", NATIVE, "input_reference"),
        ("/", {"inputs": {"prompt": "a fox"}}, "inputs.image"),
        ("/api/v6/video/text2video", MODELSLAB, "model_id"),
        ("/v3/async/txt2video", NOVITA, "model_name"),
        ("/v3/async/fox", {"prompt": "a fox"}, "prompt"),
        ("/v3/hf/fox", {"prompt": "a fox"}, "prompt"),
        ("/polyreel/v1/jobs", NATIVE, "image"),
    ],
)
async def test_a_text_for_a_model_that_wants_a_picture_is_refused_by_a_field_of_that_route(
    make_api: Callable[..., Api], path: str, body: dict[str, Any], field: str
) -> None:
    api = serving(make_api, "i2v")
    answer = await api.http.post(path, json=body, headers={"Authorization": f"Bearer {api.key}"})
    assert answer.status_code in (400, 422)
    assert said(answer) == f"{field}: fox cannot do this (t2v). Models that can: none here."
