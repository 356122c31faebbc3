"""The API's main job on full-size models: submitted in each dialect, run by a worker, fetched, decoded, measured."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from polyreel.job import JobStatus
from tests.conftest import KEY, Api
from tests.gpu.device import ON_CPU
from tests.gpu.served import SERVED, Size, make_catalogue
from tests.live.decode import decode
from tests.workers import claims
from workers.residency import Residency
from workers.runner import JobRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.anyio,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),  # what CUDA's libraries warn of is not known here, and breaks nothing
]

HEADERS = {"Authorization": f"Bearer {KEY}"}
PROMPT = "A cat walking across a sunny room"

#: The largest that a dialect's contract or a model's own size allows, by (model, dialect).
SIZES = {
    ("wan2.1-1.3b", "huggingface"): Size(81, 480, 832),
    ("wan2.2-5b", "universal"): Size(49, 704, 1280),
    ("wan2.2-5b", "modelslab"): Size(25, 512, 512),
    ("ltx", "huggingface"): Size(121, 512, 768),
    ("ltx", "universal"): Size(100, 480, 704),  # made as 105 frames
    ("ltx", "modelslab"): Size(24, 510, 500),  # made as 25 frames of 512x512
    ("sd15-animatediff", "novita"): Size(32, 512, 512),
    ("sd15-animatediff", "universal"): Size(16, 512, 512),
    ("sd15-animatediff", "modelslab"): Size(16, 512, 512),
}

#: The same on the CPU; Novita's contract begins at 8 frames of 256x256.
TINY_SIZES = {"huggingface": Size(6, 64, 80), "universal": Size(5, 64, 96), "modelslab": Size(7, 66, 70)}
TINY_SIZES["novita"] = Size(8, 256, 264)

#: Runs the one job that is submitted meanwhile.
Work = Callable[[], Awaitable[None]]


async def huggingface(api: Api, name: str, size: Size, steps: int, work: Work) -> bytes:
    parameters = {
        "num_frames": size.num_frames,
        "height": size.height,
        "width": size.width,
        "num_inference_steps": steps,
        "seed": 7,
    }
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        answer = await api.http.post(
            f"/models/{name}", headers=HEADERS, json={"inputs": PROMPT, "parameters": parameters}
        )
    assert answer.status_code == 200, answer.text
    return answer.content


async def universal(api: Api, name: str, size: Size, steps: int, work: Work) -> bytes:
    inputs = {
        "prompt": PROMPT,
        "num_frames": size.num_frames,
        "height": size.height,
        "width": size.width,
        "num_inference_steps": steps,
        "seed": 7,
        "outputs": ["webm"],
    }
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        answer = await api.http.post("/", headers=HEADERS, json={"inputs": inputs})
    assert answer.json().get("ok"), answer.text
    return base64.b64decode(answer.json()["outputs"]["webm_base64"])


async def modelslab(api: Api, name: str, size: Size, steps: int, work: Work) -> bytes:
    body = {
        "key": KEY,
        "model_id": name,
        "prompt": PROMPT,
        "num_frames": size.num_frames,
        "output_type": "mp4",
        "height": size.height,
        "width": size.width,
        "num_inference_steps": steps,
        "seed": 7,
    }
    submitted = (await api.http.post("/api/v6/video/text2video", json=body)).json()
    assert submitted["status"] == "processing", submitted
    await work()
    answer = (await api.http.post(f"/api/v6/video/fetch/{submitted['id']}", json={"key": KEY})).json()
    assert answer["status"] == "success", answer
    return (await api.http.get(answer["output"][0])).content


async def novita(api: Api, name: str, size: Size, steps: int, work: Work) -> bytes:
    half = size.num_frames // 2
    body = {
        "model_name": name,
        "height": size.height,
        "width": size.width,
        "steps": steps,
        "seed": 7,
        "prompts": [
            {"frames": half, "prompt": PROMPT},
            {"frames": size.num_frames - half, "prompt": "the same at night"},
        ],
    }
    if half < 8:  # the least that a span may have
        body["prompts"] = [{"frames": size.num_frames, "prompt": PROMPT}]
    submitted = await api.http.post("/v3/async/txt2video", headers=HEADERS, json=body)
    assert submitted.status_code == 200, submitted.text
    await work()
    result = (await api.http.get("/v3/async/task-result", headers=HEADERS, params=submitted.json())).json()
    assert result["task"]["status"] == "TASK_STATUS_SUCCEED", result
    return (await api.http.get(result["videos"][0]["video_url"])).content


CLIENTS: dict[str, Callable[[Api, str, Size, int, Work], Awaitable[bytes]]] = {
    "huggingface": huggingface,
    "universal": universal,
    "modelslab": modelslab,
    "novita": novita,
}


@pytest.fixture
def api_of(make_api: Callable[..., Api], tmp_path: Any) -> Callable[[str], Api]:
    """Return a maker of APIs over the full-size catalogue; the universal dialect serves one model per endpoint."""

    def make(model: str) -> Api:
        models = make_catalogue(tmp_path / "checkpoints").models
        [endpoint] = SERVED[model].names.get("universal", ("ltx",))
        sections = {"modelslab": {"hold_s": 0}, "universal": {"endpoint_model": endpoint}}
        return make_api(models=models, loras={}, embeddings={}, dialects=sections)

    return make


@pytest.mark.parametrize(("model", "dialect"), SIZES, ids=lambda value: value)
async def test_a_job_of_every_dialect_delivers_exactly_the_frames_and_the_size_that_were_asked_for(
    api_of: Callable[[str], Api],
    residency: Residency,
    make_runner: Callable[[Residency], JobRunner],
    model: str,
    dialect: str,
) -> None:
    api, runner = api_of(model), make_runner(residency)
    size = TINY_SIZES[dialect] if ON_CPU else SIZES[model, dialect]
    ran: list[str] = []

    async def work() -> None:
        while not (waiting := api.records.open_ids()):  # noqa: ASYNC110 -- another process would say nothing either
            await anyio.sleep(0.01)
        ran.extend(waiting)
        await anyio.to_thread.run_sync(claims.run, runner)

    clip = decode(await CLIENTS[dialect](api, SERVED[model].names[dialect][0], size, 4, work))

    assert clip.shape == (size.num_frames, size.width, size.height)
    assert clip.frames.std() > 1  # a picture, and not one colour
    stored = api.records.get(ran[0])
    assert stored is not None
    assert (stored.job.status, stored.job.request.model) == (JobStatus.SUCCEEDED, model)
    assert (stored.job.receipt["device"], stored.job.receipt["placement"]) == ("cpu" if ON_CPU else "cuda", "resident")
    assert "after_out_of_memory" not in stored.job.receipt


def test_every_name_that_is_served_is_tried() -> None:
    names = {(model, dialect) for model, served in SERVED.items() for dialect in served.names}
    assert names == set(SIZES)
