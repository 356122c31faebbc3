"""A video from a picture, in every way in which Hugging Face's clients send one, and the object in its place."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from polyreel.job import VideoJob
from polyreel.request import ImageCondition, PromptSpan
from polyreel.settings import Settings
from server.dialects.huggingface.inputs import is_picture_text
from tests.conftest import Api
from tests.dialects.huggingface import LTX, WAN, ask, generate
from tests.server.pictures import encoded, png

pytestmark = pytest.mark.anyio

PICTURE = png(9, 7)
TEXT = base64.b64encode(PICTURE).decode()
KEY = f"in/{hashlib.sha256(PICTURE).hexdigest()}"
NO_PICTURE = "inputs must be a picture (PNG, JPEG, WEBP, GIF, BMP), got something else"
I2V = f"{LTX}/pipeline/image-to-video"


def lines(text: str) -> str:
    """Return a text as `base64 FILE` prints it on Linux, if its lines were shorter."""
    return "\n".join(text[start : start + 20] for start in range(0, len(text), 20))


FORMS: dict[str, dict[str, Any]] = {
    "base64": {"inputs": TEXT},
    "base64 for URLs": {"inputs": base64.urlsafe_b64encode(PICTURE).decode()},
    "base64 in lines": {"inputs": lines(TEXT)},
    "base64 in lines, as a shell puts them into JSON": {"content": b'{"inputs": "' + lines(TEXT).encode() + b'"}'},
    "base64 in JSON that is indented, where the path says so": {
        "content": b"\xef\xbb\xbf" + b" \n" * 99 + b'{"inputs": "' + TEXT.encode() + b'"}',
        "path": I2V,
    },
    "a data URL": {"inputs": f"data:image/png;base64,{TEXT}"},
    "base64 where the path says so": {"inputs": TEXT, "path": I2V},
    "base64 where an older path says so": {"inputs": TEXT, "path": "/pipeline/image-to-video/Lightricks/LTX-Video"},
    "base64 where the path says otherwise": {"inputs": TEXT, "path": f"{LTX}/pipeline/text-to-video"},
    "a body with its type": {"content": PICTURE, "headers": {"Content-Type": "image/png"}},
    "a body without a type": {"content": PICTURE},
    "a body of a form's type": {"content": PICTURE, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    "a body where the path says so": {"content": PICTURE, "path": f"/hf-inference{I2V}"},
}


@pytest.mark.parametrize("form", FORMS)
async def test_a_picture_in_any_form_becomes_the_first_frame(api: Api, form: str) -> None:
    submitted: list[VideoJob] = []
    answer = await generate(api, submitted=submitted, **FORMS[form])

    assert (answer.status_code, answer.content) == (200, b"mp4 bytes"), answer.text
    assert answer.headers["content-type"] == "video/mp4"
    request = submitted[0].request
    assert request.images == (ImageCondition(KEY, frame_index=0, strength=1.0),)
    assert request.prompts == (PromptSpan("", 25),)
    with api.storage.open(KEY) as file:
        assert file.read() == PICTURE


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
async def test_every_format_is_known_by_its_first_bytes(api: Api, format: str) -> None:
    content = encoded(Image.new("RGB", (8, 8), (9, 99, 199)), format)
    for form in ({"content": content}, {"inputs": base64.b64encode(content).decode()}):
        submitted: list[VideoJob] = []
        answer = await generate(api, submitted=submitted, headers={"x-use-cache": "false"}, **form)
        assert answer.status_code == 200, answer.text
        assert submitted[0].request.images[0].key == f"in/{hashlib.sha256(content).hexdigest()}"


PROMPTS = [
    "a cat",
    "/9j/ is how a JPEG begins in base64",
    "iVBORw0KGgo is how a PNG begins",
    "R0lGODlh, said the cat",
    "https://example.com/cat.png",
    "data:image without its slash",
    "BM",
    "Qk0",
    "cat",
    "caté",
    "猫",
    "",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_not_taken_for_a_picture(prompt: str) -> None:
    assert not is_picture_text(prompt)


async def test_the_prompt_of_a_picture_is_a_parameter(api: Api) -> None:
    submitted: list[VideoJob] = []
    answer = await generate(api, submitted=submitted, inputs=TEXT, parameters={"prompt": "a cat runs"})
    assert submitted[0].request.prompts == (PromptSpan("a cat runs", 25),)
    assert answer.headers["x-compute-characters"] == "10"


async def test_where_the_path_says_image_to_video_a_text_is_no_prompt(api: Api) -> None:
    answer = await ask(api, path=I2V, inputs="a cat!")
    assert (answer.status_code, answer.json()) == (
        400,
        {
            "error": "inputs must be a picture in base64 or an https:// link to one, got text that is neither",
            "field": "inputs",
        },
    )


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"path": I2V, "inputs": None}, "inputs is required"),
        ({"path": I2V, "inputs": " "}, "inputs must not be blank"),
        (
            {"path": I2V, "content": b"no picture"},
            NO_PICTURE,
        ),
        (
            {"content": b"II*\x00 a TIFF", "headers": {"Content-Type": "image/tiff"}},
            NO_PICTURE,
        ),
        ({"content": PICTURE[:50]}, "inputs is a damaged picture; send it again whole"),
        ({"inputs": TEXT, "parameters": {"prompt": 7}}, "parameters.prompt must be a string, got 7"),
        ({"inputs": TEXT, "parameters": {"num_frames": 0}}, "parameters.num_frames must be between 1 and 129, got 0"),
        (
            {"inputs": TEXT, "parameters": {"prompt": "x" * 10_001}},
            "parameters.prompt must be at most 10000 characters, got 10001",
        ),
    ],
)
async def test_a_wrong_picture_is_refused_in_one_sentence(api: Api, sent: dict[str, Any], message: str) -> None:
    answer = await ask(api, **sent)
    assert (answer.status_code, answer.json()["error"]) == (400, message)
    assert api.records.open_ids() == []


def with_ltx(make_api: Callable[..., Api], settings: Settings, **changes: object) -> Api:
    """Return an API whose LTX entry differs."""
    models = {**settings.models, "ltx-tiny": settings.models["ltx-tiny"].model_copy(update=changes)}
    return make_api(models=models, dialects={"universal": {"endpoint_model": "ltx"}})


async def test_a_model_that_takes_pictures_alone_takes_every_text_for_one(
    make_api: Callable[..., Api], settings: Settings
) -> None:
    api = with_ltx(make_api, settings, tasks=("i2v",))
    assert (await ask(api, inputs="a cat!")).json()["error"] == (
        "inputs must be a picture in base64 or an https:// link to one, got text that is neither"
    )
    assert (await generate(api, inputs=TEXT)).status_code == 200


async def test_a_picture_for_a_model_of_texts_runs_its_companion(
    make_api: Callable[..., Api], settings: Settings
) -> None:
    api = with_ltx(make_api, settings, tasks=("t2v",), i2v="atelier")
    submitted: list[VideoJob] = []
    assert (await generate(api, submitted=submitted, inputs=TEXT)).status_code == 200
    assert submitted[0].request.model == "atelier"


async def test_a_picture_for_a_model_of_texts_without_a_companion_names_those_that_can(
    make_api: Callable[..., Api], settings: Settings
) -> None:
    api = with_ltx(make_api, settings, tasks=("t2v",))
    answer = await ask(api, inputs=TEXT)
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "inputs: Lightricks/LTX-Video cannot do this (i2v). Models that can: Wan-AI/Wan2.1-T2V-1.3B, "
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers, Wan-AI/Wan2.1-T2V-14B, Wan-AI/Wan2.1-T2V-14B-Diffusers, "
        "AdamLucek/Wan2.1-T2V-14B-OldBookIllustrations, Wan-AI/Wan2.1-I2V-14B-480P, "
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers, Wan-AI/Wan2.1-I2V-14B-720P, Wan-AI/Wan2.1-I2V-14B-720P-Diffusers, "
        "Wan-AI/Wan2.2-T2V-A14B, Wan-AI/Wan2.2-T2V-A14B-Diffusers, Wan-AI/Wan2.2-I2V-A14B, "
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers, Wan-AI/Wan2.2-TI2V-5B, Wan-AI/Wan2.2-TI2V-5B-Diffusers.",
    )


# An object as inputs: the universal handler, with the model of the path


@pytest.mark.parametrize(("path", "model"), [(LTX, "ltx-tiny"), (WAN, "atelier"), (f"/hf-inference{WAN}/", "atelier")])
async def test_an_object_is_answered_by_the_universal_handler_with_the_paths_model(
    api: Api, path: str, model: str
) -> None:
    submitted: list[VideoJob] = []
    inputs = {"prompt": "a cat", "image": TEXT, "outputs": ["gif", "zip"]}
    answer = await generate(api, b"GIF89a", submitted, path=path, inputs=inputs)

    assert answer.json()["ok"] is True
    assert answer.json()["outputs"] == {"gif_base64": "R0lGODlh", "zip_base64": "R0lGODlh"}
    assert answer.json()["diagnostics"]["mode"] == "i2v"
    assert (submitted[0].dialect, submitted[0].request.model) == ("universal", model)
    assert submitted[0].request.num_frames == 32, "the card's default"


async def test_a_wrong_object_is_refused_in_the_universal_handlers_shape(api: Api) -> None:
    answer = await ask(api, inputs={"prompt": " "})
    assert (answer.status_code, answer.json()) == (
        400,
        {"ok": False, "error": "inputs.prompt must not be blank", "field": "inputs.prompt"},
    )
