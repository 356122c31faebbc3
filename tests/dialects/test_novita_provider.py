"""What Hugging Face's clients send with the provider "novita"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest

from polyreel.catalogue import Catalogue
from polyreel.errors import InvalidRequest
from polyreel.job import VideoJob
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from server.body import validate
from server.dialects.novita import provider
from server.dialects.novita.provider import ProviderBody
from tests.conftest import Api

LTX = "Lightricks/LTX-Video"


def request_of(catalogue: Catalogue, **fields: Any) -> VideoRequest:
    return provider.from_wire(validate(ProviderBody, {"prompt": "a cat"} | fields), "ltx-tiny", catalogue)


def test_a_prompt_alone_takes_the_entrys_defaults(catalogue: Catalogue) -> None:
    assert request_of(catalogue, seed=1) == VideoRequest(
        model="ltx-tiny",
        prompts=(PromptSpan("a cat", 25),),
        height=256,
        width=256,
        fps=24,
        num_inference_steps=20,
        guidance_scale=3.0,
        seed=1,
        outputs=(OutputSpec("mp4", 24),),
    )


def test_the_parameters_of_the_python_client_lie_flat_beside_the_prompt(catalogue: Catalogue) -> None:
    request = request_of(
        catalogue,
        guidance_scale=5.5,
        negative_prompt=["blurry", "low quality"],
        num_frames=17.0,
        num_inference_steps=4,
        seed=42,
        width=64,
        height=96,
        fps=8,
    )
    assert request == VideoRequest(
        model="ltx-tiny",
        prompts=(PromptSpan("a cat", 17),),
        negative_prompt="blurry, low quality",
        height=96,
        width=64,
        fps=8,
        num_inference_steps=4,
        guidance_scale=5.5,
        seed=42,
        outputs=(OutputSpec("mp4", 8),),
    )


def test_the_javascript_client_says_steps(catalogue: Catalogue) -> None:
    assert request_of(catalogue, steps=4).num_inference_steps == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": None}, "prompt is required"),
        ({"num_frames": 0}, "num_frames must be between 1 and 129, got 0"),
        ({"steps": 101}, "steps must be between 1 and 100, got 101"),
        ({"num_inference_steps": 101}, "num_inference_steps must be between 1 and 100, got 101"),
        ({"width": 32}, "width must be between 64 and 1280, got 32"),
        ({"guidance_scale": -1}, "guidance_scale must be between 0 and 100, got -1"),
        ({"fps": 0}, "fps must be between 1 and 120, got 0"),
    ],
)
def test_a_wrong_field_is_refused_in_one_sentence(catalogue: Catalogue, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        request_of(catalogue, **fields)
    assert refusal.value.message == message


async def wait_while(api: Api, name: str, end: Callable[[str], object]) -> httpx2.Response:
    """Send the Python client's call, end its job as soon as it is there, and return the answer."""
    answers: list[httpx2.Response] = []

    async def send() -> None:
        headers = {"Authorization": f"Bearer {api.key}"}
        answers.append(await api.http.post(f"/v3/hf/{name}", json={"prompt": "a cat"}, headers=headers))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            while True:
                await anyio.sleep(0.01)
                if api.records.open_ids():
                    break
            end(api.newest().job.id)
    return answers[0]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "model"),
    [(LTX, "ltx-tiny"), ("lightricks%2Fltx-video", "ltx-tiny"), ("wan-t2v", "atelier")],
)
async def test_one_call_waits_for_the_video_and_answers_with_its_link(api: Api, name: str, model: str) -> None:
    ended: list[VideoJob] = []
    response = await wait_while(api, name, lambda job_id: ended.append(api.finish(job_id, b"the file")))
    assert (response.status_code, list(response.json()), list(response.json()["video"])) == (
        200,
        ["video"],
        ["video_url"],
    )
    assert ended[0].request.model == model
    assert (await api.http.get(response.json()["video"]["video_url"])).content == b"the file"


@pytest.mark.anyio
async def test_a_job_that_fails_while_its_client_waits_is_told_in_the_envelope(api: Api) -> None:
    response = await wait_while(api, LTX, lambda job_id: api.fail(job_id, "The GPU has too little memory."))
    assert (response.status_code, response.json()) == (
        500,
        {"code": 500, "reason": "TASK_FAILED", "message": "The GPU has too little memory.", "metadata": {}},
    )


@pytest.mark.anyio
async def test_a_submit_by_name_is_polled_as_any_other_task(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.key}"}
    response = await api.http.post(f"/v3/async/{LTX}", json={"prompt": "a cat", "steps": 4}, headers=headers)
    task_id = response.json()["task_id"]
    polled = await api.http.get("/v3/async/task-result", params={"task_id": task_id}, headers=headers)
    assert polled.json()["task"]["status"] == "TASK_STATUS_QUEUED"
    assert api.newest().job.request.model == "ltx-tiny"


@pytest.mark.anyio
async def test_a_server_that_stops_while_a_client_waits_says_that_the_task_was_made(api: Api) -> None:
    api.app.state.services.stopping.set()
    headers = {"Authorization": f"Bearer {api.key}"}
    response = await api.http.post(f"/v3/hf/{LTX}", json={"prompt": "a cat"}, headers=headers)
    assert (response.status_code, response.json()["reason"]) == (503, "GET_RESULT_FAILED")
    assert api.records.open_ids() == [api.newest().job.id]
