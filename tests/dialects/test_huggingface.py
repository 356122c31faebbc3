"""Hugging Face Inference, as its page and real clients speak it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from polyreel.catalogue import Catalogue
from polyreel.request import VideoRequest
from server.body import validate
from server.dialects.huggingface.request import Body, from_wire
from server.dialects.huggingface.run import to_wire
from tests.conftest import Api
from tests.dialects.golden import Row, finished, golden, without_drawn_seed
from tests.dialects.huggingface import LTX, ask, auth, beat, generate, play

ID = "fa20dff3-18cb-4417-a7f8-269456a35154"
NO_KEY = {"error": "Invalid credentials in Authorization header"}


# The two translations


@pytest.mark.parametrize("row", golden("huggingface"), ids=str)
def test_a_body_becomes_the_neutral_request(row: Row, catalogue: Catalogue) -> None:
    model = catalogue.resolve("huggingface", row.wire["model"])
    # A picture is stored first, and its key is in the request that is submitted (tested below).
    without_picture = {name: value for name, value in row.neutral.items() if name != "images"}
    has_picture = without_picture != row.neutral
    request = from_wire(validate(Body, row.wire["body"]), model, catalogue, has_picture=has_picture)
    assert without_drawn_seed(request, row.neutral) == VideoRequest.from_dict(without_picture)


@pytest.mark.parametrize("row", golden("huggingface"), ids=str)
def test_the_finished_request_becomes_the_headers_of_the_answer(row: Row) -> None:
    assert to_wire(finished(VideoRequest.from_dict(row.neutral), ID), "cpu") == row.answer


@pytest.mark.anyio
@pytest.mark.parametrize("row", golden("huggingface"), ids=str)
async def test_a_body_on_the_wire_makes_the_job_of_the_neutral_request(api: Api, row: Row) -> None:
    submitted: list[VideoRequest] = []

    def end(job_id: str) -> None:
        submitted.append(api.newest().job.request)
        api.finish(job_id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play, api, end)
        with anyio.fail_after(20):
            answer = await api.http.post(f"/models/{row.wire['model']}", json=row.wire["body"], headers=auth(api.key))
    assert answer.status_code == 200, answer.text
    assert without_drawn_seed(submitted[0], row.neutral) == VideoRequest.from_dict(row.neutral)


# The answer


@pytest.mark.anyio
async def test_the_answer_is_the_video_itself(api: Api) -> None:
    beat(api, "ltx-tiny")
    answer = await generate(api, b"mp4 bytes")
    assert (answer.status_code, answer.content) == (200, b"mp4 bytes")
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["x-compute-type"] == "cpu"
    assert answer.headers["x-compute-characters"] == "5"
    assert 0 <= float(answer.headers["x-compute-time"]) < 5
    assert len(answer.headers["x-compute-time"].partition(".")[2]) == 3


@pytest.mark.anyio
async def test_the_answer_names_a_gpu_but_not_which(api: Api) -> None:
    beat(api, "ltx-tiny", device="cuda:0")
    assert (await generate(api)).headers["x-compute-type"] == "gpu"


@pytest.mark.anyio
async def test_a_worker_that_has_gone_since_is_left_out_of_the_answer(api: Api) -> None:
    answer = await generate(api)
    assert answer.status_code == 200
    assert "x-compute-type" not in answer.headers


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    [
        "/models/Lightricks/LTX-Video",
        "/models/Lightricks/LTX-Video/",
        "/models/Lightricks%2FLTX-Video",
        "/models/lightricks/ltx-video",
        "/models/Lightricks/LTX-Video/pipeline/text-to-video",
        "/models/Lightricks/LTX-Video/pipeline/text-to-video/",
        "/pipeline/text-to-video/Lightricks/LTX-Video",
        "/pipeline/text-to-video/Lightricks/LTX-Video/",
        "/hf-inference/models/Lightricks/LTX-Video",
        "/hf-inference/models/Lightricks%2FLTX-Video/pipeline/text-to-video",
        "/hf-inference/pipeline/text-to-video/Lightricks/LTX-Video",
    ],
)
async def test_every_path_that_clients_build_is_answered_without_a_redirect(api: Api, path: str) -> None:
    answer = await generate(api, path=path)
    assert (answer.status_code, answer.content) == (200, b"mp4 bytes")


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "Bearer: {}", "BEARER:  {}"])
async def test_the_key_is_taken_in_the_documented_form_and_the_usual_one(api: Api, form: str) -> None:
    answer = await generate(api, headers={"Authorization": form.format(api.key)})
    assert answer.status_code == 200


@pytest.mark.anyio
async def test_the_body_is_json_whatever_its_content_type_says(api: Api) -> None:
    headers = auth(api.key) | {"Content-Type": "application/x-www-form-urlencoded"}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play, api, api.finish)
        answer = await api.http.post(LTX, content=b'{"inputs": "a cat"}', headers=headers)
    assert answer.status_code == 200


# Refusals

MOST = "9223372036854775807"
NO_PICTURE = "inputs must be a picture (PNG, JPEG, WEBP, GIF, BMP), got something else"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"inputs": None}, "inputs is required"),
    ({"inputs": ""}, "inputs must not be blank"),
    ({"inputs": " \n"}, "inputs must not be blank"),
    ({"inputs": 7}, "inputs must be a string, got 7"),
    ({"inputs": True}, "inputs must be a string, got true"),
    ({"inputs": ["a cat"]}, "inputs must be a string, got a list of 1"),
    ({"inputs": "data:image/png;base64,AAAA"}, NO_PICTURE),
    ({"parameters": []}, "parameters must be an object, got a list of 0"),
    ({"parameters": "fast"}, 'parameters must be an object, got "fast"'),
    ({"parameters": {"num_frames": 0}}, "parameters.num_frames must be between 1 and 129, got 0"),
    ({"parameters": {"num_frames": 130}}, "parameters.num_frames must be between 1 and 129, got 130"),
    ({"parameters": {"num_frames": 16.5}}, "parameters.num_frames must be an integer, got 16.5"),
    ({"parameters": {"num_frames": True}}, "parameters.num_frames must be a number, got true"),
    ({"parameters": {"guidance_scale": -0.1}}, "parameters.guidance_scale must be between 0 and 100, got -0.1"),
    ({"parameters": {"guidance_scale": 101}}, "parameters.guidance_scale must be between 0 and 100, got 101"),
    ({"parameters": {"guidance_scale": "high"}}, 'parameters.guidance_scale must be a number, got "high"'),
    (
        {"parameters": {"negative_prompt": 5}},
        "parameters.negative_prompt must be a string, got 5",
    ),
    (
        {"parameters": {"negative_prompt": ["blurry", 5]}},
        "parameters.negative_prompt must be a string or a list of strings, got a list of 2",
    ),
    (
        {"parameters": {"num_inference_steps": 0}},
        "parameters.num_inference_steps must be between 1 and 100, got 0",
    ),
    (
        {"parameters": {"num_inference_steps": 101}},
        "parameters.num_inference_steps must be between 1 and 100, got 101",
    ),
    ({"parameters": {"seed": -2}}, f"parameters.seed must be between -1 and {MOST}, got -2"),
    ({"parameters": {"seed": 2**63}}, f"parameters.seed must be between -1 and {MOST}, got 9223372036854775808"),
    ({"parameters": {"seed": 1.5}}, "parameters.seed must be an integer, got 1.5"),
    ({"parameters": {"width": 63}}, "parameters.width must be between 64 and 1280, got 63"),
    ({"parameters": {"width": 1281}}, "parameters.width must be between 64 and 1280, got 1281"),
    ({"parameters": {"height": 63}}, "parameters.height must be between 64 and 1280, got 63"),
    ({"parameters": {"height": 1281}}, "parameters.height must be between 64 and 1280, got 1281"),
    ({"parameters": {"fps": 0}}, "parameters.fps must be between 1 and 120, got 0"),
    ({"parameters": {"fps": 121}}, "parameters.fps must be between 1 and 120, got 121"),
    ({"parameters": {"target_size": {"width": 64}}}, "parameters.target_size.height is required"),
    ({"parameters": {"target_size": {"height": 64}}}, "parameters.target_size.width is required"),
    (
        {"parameters": {"target_size": {"width": 64, "height": 9}}},
        "parameters.target_size.height must be between 64 and 1280, got 9",
    ),
    ({"parameters": {"target_size": "64x64"}}, 'parameters.target_size must be an object, got "64x64"'),
    ({"options": {"use_cache": "perhaps"}}, 'options.use_cache must be true or false, got "perhaps"'),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message[:70] for _, message in REFUSED])
async def test_a_wrong_field_is_refused_in_one_sentence(api: Api, fields: dict[str, Any], message: str) -> None:
    answer = await ask(api, **fields)
    assert (answer.status_code, answer.json()["error"]) == (400, message)
    assert api.records.open_ids() == []


BODIES: list[tuple[bytes, str]] = [
    (b"", "The request body is not valid JSON: Expecting value (line 1)."),
    (b"a cat", "The request body is not valid JSON: Expecting value (line 1)."),
    (b'["a cat"]', "The request body must be a JSON object."),
    (b'{"parameters": {}}', "inputs is required"),
    (
        b'{"inputs": "a", "parameters": {"guidance_scale": NaN}}',
        "The request body holds NaN, which is not a number in JSON.",
    ),
    (
        b'{"inputs": "a", "parameters": {"guidance_scale": 1e400}}',
        "The request body holds the number 1e400, which is too large.",
    ),
    (b"\x89PNG\r\n\x1a\n\x00\x00", NO_PICTURE),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", "inputs is a damaged picture; send it again whole"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("body", "message"), BODIES, ids=[message[:60] for _, message in BODIES])
async def test_a_wrong_body_is_refused_in_one_sentence(api: Api, body: bytes, message: str) -> None:
    answer = await api.http.post(LTX, content=body, headers=auth(api.key))
    assert (answer.status_code, answer.json()["error"]) == (400, message)


@pytest.mark.anyio
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic {}", "{}"])
async def test_without_a_good_key_nothing_else_is_said(api: Api, header: str | None) -> None:
    headers = {"Authorization": header.format(api.key)} if header else {}
    for path, body in ((LTX, b'{"inputs": "a cat"}'), ("/models/no/such", b"{}"), (LTX, b"no JSON")):
        answer = await api.http.post(path, content=body, headers=headers)
        assert (answer.status_code, answer.json()) == (401, NO_KEY)
