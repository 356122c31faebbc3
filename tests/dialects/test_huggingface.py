"""Hugging Face Inference, as its page and real clients speak it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest

from polyreel.catalogue import Catalogue
from polyreel.errors import QueueUnavailable
from polyreel.records import StoredJob
from polyreel.request import VideoRequest
from server.body import validate
from server.dialects import huggingface
from server.dialects.huggingface import TextToVideo
from server.services import Services
from tests.conftest import Api
from tests.dialects.golden import Row, finished, golden, without_drawn_seed

LTX = "/models/Lightricks/LTX-Video"
ID = "fa20dff3-18cb-4417-a7f8-269456a35154"
SERVED = (
    "Served: AdamLucek/Wan2.1-T2V-14B-OldBookIllustrations, Lightricks/LTX-Video, Wan-AI/Wan2.1-T2V-1.3B, "
    "Wan-AI/Wan2.1-T2V-14B."
)
NO_KEY = {"error": "Invalid credentials in Authorization header"}


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def ask(api: Api, *, path: str = LTX, headers: dict[str, str] | None = None, **body: Any) -> httpx2.Response:
    """Send a request; nobody finishes its job."""
    with anyio.fail_after(20):
        return await api.http.post(path, json={"inputs": "a cat"} | body, headers=auth(api.key) | (headers or {}))


async def play(api: Api, end: Callable[[str], Any], jobs: int = 1) -> None:
    """End the next jobs as a worker would."""
    for _ in range(jobs):
        while not api.records.open_ids():  # noqa: ASYNC110 the job arrives in Redis, which sets no event
            await anyio.sleep(0.01)
        end(api.records.open_ids()[0])


async def generate(api: Api, content: bytes = b"mp4 bytes", **request: Any) -> httpx2.Response:
    """Send a request while a worker makes its video."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play, api, lambda job_id: api.finish(job_id, content))
        return await ask(api, **request)


def beat(api: Api, *loaded: str, name: str = "test-worker", device: str = "cpu") -> None:
    """Say what a live worker says of itself."""
    api.leases.beat(name, {"device": device, "models": ["ltx-tiny"], "loaded": list(loaded), "unavailable": {}})


# The two translations


@pytest.mark.parametrize("row", golden("huggingface"), ids=str)
def test_a_body_becomes_the_neutral_request(row: Row, catalogue: Catalogue) -> None:
    model = catalogue.resolve("huggingface", row.wire["model"])
    request = huggingface.from_wire(validate(TextToVideo, row.wire["body"]), model, catalogue)
    assert without_drawn_seed(request, row.neutral) == VideoRequest.from_dict(row.neutral)


@pytest.mark.parametrize("row", golden("huggingface"), ids=str)
def test_the_finished_request_becomes_the_headers_of_the_answer(row: Row) -> None:
    assert huggingface.to_wire(finished(VideoRequest.from_dict(row.neutral), ID), "cpu") == row.answer


@pytest.mark.anyio
@pytest.mark.parametrize("row", golden("huggingface", refused=True), ids=str)
async def test_a_documented_request_that_is_not_served_here_says_so(api: Api, row: Row) -> None:
    answer = await api.http.post(f"/models/{row.wire['model']}", json=row.wire["body"], headers=auth(api.key))
    assert (answer.status_code, answer.json()["error"]) == (400, row.error)
    assert api.records.open_ids() == []


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


@pytest.mark.anyio
@pytest.mark.parametrize("path", [LTX, f"{LTX}/", f"{LTX}/info", f"/hf-inference{LTX}"])
async def test_a_model_is_described_to_who_has_a_key(api: Api, path: str) -> None:
    answer = await api.http.get(path, headers=auth(api.key))
    assert answer.json() == {"model_id": "Lightricks/LTX-Video", "pipeline_tag": "text-to-video", "family": "ltx"}
    assert (await api.http.get(path)).status_code == 401


# Refusals

MOST = "9223372036854775807"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"inputs": None}, "inputs is required"),
    ({"inputs": ""}, "inputs must not be blank"),
    ({"inputs": " \n"}, "inputs must not be blank"),
    ({"inputs": 7}, "inputs must be a string, got 7"),
    ({"inputs": True}, "inputs must be a string, got true"),
    ({"inputs": ["a cat"]}, "inputs must be a string, got a list of 1"),
    (
        {"inputs": {"prompt": "a cat"}},
        "inputs must be a string here; a request whose inputs are an object goes to POST /",
    ),
    ({"inputs": "data:image/png;base64,AAAA"}, "image-to-video is not served yet; send a text prompt as inputs"),
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
        "parameters.negative_prompt: must be a string or a list of strings (got a list of 2)",
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
    (b"\x89PNG\r\n\x1a\n\x00\x00", "image-to-video is not served yet; send a text prompt as inputs"),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", "image-to-video is not served yet; send a text prompt as inputs"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("body", "message"), BODIES, ids=[message[:60] for _, message in BODIES])
async def test_a_wrong_body_is_refused_in_one_sentence(api: Api, body: bytes, message: str) -> None:
    answer = await api.http.post(LTX, content=body, headers=auth(api.key))
    assert (answer.status_code, answer.json()["error"]) == (400, message)


CALLS: list[tuple[str, str, int, str]] = [
    ("POST", "/models/tencent/HunyuanVideo", 404, f"Model tencent/HunyuanVideo is not served here. {SERVED}"),
    ("GET", "/models/tencent/HunyuanVideo", 404, f"Model tencent/HunyuanVideo is not served here. {SERVED}"),
    (
        "POST",
        "/models/Lightricks/LTX-Vide",
        404,
        f"Model Lightricks/LTX-Vide is not served here. Did you mean Lightricks/LTX-Video? {SERVED}",
    ),
    (
        "POST",
        "/pipeline/text-to-speech/Lightricks/LTX-Video",
        404,
        "Model Lightricks/LTX-Video does not serve the task text-to-speech; it serves text-to-video.",
    ),
    (
        "POST",
        f"{LTX}/pipeline/image-to-video",
        400,
        "image-to-video is not served yet; send a text prompt as inputs",
    ),
    ("PUT", LTX, 405, f"PUT is not allowed for {LTX}; use GET, POST."),
    ("POST", "/hf-inference/x", 404, "There is nothing at POST /hf-inference/x."),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path", "status", "message"), CALLS)
async def test_a_wrong_call_is_answered_with_one_text(
    api: Api, method: str, path: str, status: int, message: str
) -> None:
    body = None if method == "GET" else {"inputs": "a cat"}
    answer = await api.http.request(method, path, json=body, headers=auth(api.key))
    assert (answer.status_code, answer.json()["error"]) == (status, message)


@pytest.mark.anyio
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic {}", "{}"])
async def test_without_a_good_key_nothing_else_is_said(api: Api, header: str | None) -> None:
    headers = {"Authorization": header.format(api.key)} if header else {}
    for path, body in ((LTX, b'{"inputs": "a cat"}'), ("/models/no/such", b"{}"), (LTX, b"no JSON")):
        answer = await api.http.post(path, content=body, headers=headers)
        assert (answer.status_code, answer.json()) == (401, NO_KEY)


@pytest.mark.anyio
async def test_a_body_over_the_limit_is_413(make_api: Callable[..., Api]) -> None:
    api = make_api(max_body_bytes=100)
    answer = await ask(api, inputs="a" * 100)
    assert (answer.status_code, answer.json()) == (413, {"error": "The request body is larger than 100 bytes."})


@pytest.mark.anyio
async def test_a_full_queue_is_429_which_no_client_retries_at_once(make_api: Callable[..., Api]) -> None:
    api = make_api(max_queued=0)
    answer = await ask(api)
    assert answer.status_code == 429
    assert answer.json() == {"error": "The queue is full (0 unfinished jobs). Try again later."}
    assert answer.headers["retry-after"] == "30"


@pytest.mark.anyio
async def test_a_failed_job_is_500_with_its_reason(api: Api) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play, api, api.fail)
        answer = await ask(api)
    assert answer.status_code == 500
    assert answer.json()["error"] == "The GPU has too little memory."
    assert len(answer.json()["job_id"]) == 36


# Waiting


@pytest.mark.anyio
async def test_when_the_time_is_up_the_answer_is_504_with_the_jobs_id(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"huggingface": {"wait_s": 0.2}})
    answer = await ask(api)
    assert answer.status_code == 504
    assert answer.json() == {
        "error": "The video was not ready within 0.2 seconds; its job goes on.",
        "job_id": api.newest().job.id,
    }


@pytest.mark.anyio
async def test_by_default_a_request_is_held_while_its_model_loads(api: Api) -> None:
    beat(api)  # a worker lives and has loaded nothing
    assert (await generate(api)).status_code == 200


@pytest.fixture
def impatient(make_api: Callable[..., Api]) -> Api:
    """An API that answers 503 while a model loads, as the page says, and caches nothing."""
    return make_api(dialects={"huggingface": {"wait_for_model": False, "cache": "off"}})


@pytest.mark.anyio
async def test_as_documented_a_loading_model_is_503_held_for_a_second(impatient: Api) -> None:
    beat(impatient, "wan-tiny")
    began = time.monotonic()
    answer = await ask(impatient)
    assert time.monotonic() - began >= 1
    assert answer.status_code == 503
    assert answer.json() == {
        "error": "Model Lightricks/LTX-Video is currently loading",
        "estimated_time": 10.0,
        "job_id": impatient.newest().job.id,
    }
    assert answer.headers["retry-after"] == "10"


@pytest.mark.anyio
async def test_a_client_that_comes_back_after_a_503_gets_the_video_of_its_first_request(impatient: Api) -> None:
    assert (await ask(impatient)).status_code == 503
    assert (await ask(impatient)).status_code == 503
    [job_id] = impatient.records.open_ids()
    impatient.finish(job_id, b"of the first request")
    answer = await ask(impatient)
    assert (answer.status_code, answer.content) == (200, b"of the first request")
    assert answer.headers.get("x-compute-type") != "cache"
    assert (await ask(impatient)).status_code == 503, "the promise was kept, the next request is a new one"


@pytest.mark.anyio
async def test_a_client_that_comes_back_after_a_503_learns_that_the_model_cannot_load(impatient: Api) -> None:
    assert (await ask(impatient)).status_code == 503
    impatient.fail(impatient.newest().job.id, "The checkpoint is broken.", "checkpoint_unavailable")
    answer = await ask(impatient)
    assert (answer.status_code, answer.json()["error"]) == (500, "The checkpoint is broken.")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "request_", [{"headers": {"x-wait-for-model": "true"}}, {"headers": {"X-Wait-For-Model": "1"}},
                 {"options": {"wait_for_model": True}}]
)  # fmt: skip
async def test_a_client_that_asks_to_wait_is_held(impatient: Api, request_: dict[str, Any]) -> None:
    assert (await generate(impatient, **request_)).status_code == 200


@pytest.mark.anyio
async def test_a_loaded_model_is_never_503(impatient: Api) -> None:
    beat(impatient, "ltx-tiny")
    assert (await generate(impatient)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body"), [(LTX, {"inputs": "a cat"}), ("/", {"inputs": {"prompt": "a cat"}})], ids=["model", "universal"]
)
async def test_an_unreachable_queue_is_a_503_held_for_a_second(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise QueueUnavailable("The queue does not answer right now. Try again in a few seconds.")

    monkeypatch.setattr(Services, "submit", refuse)
    began = time.monotonic()
    answer = await api.http.post(path, json=body, headers=auth(api.key))
    assert time.monotonic() - began >= 1
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"] == "The queue does not answer right now. Try again in a few seconds."


@pytest.mark.anyio
async def test_redis_may_restart_while_a_client_waits(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    wait, failures = Services.wait, []

    async def falter(shared: Services, job_id: str, owner: str, timeout_s: float) -> StoredJob:
        if not failures:
            failures.append(job_id)
            raise QueueUnavailable("The queue does not answer right now.")
        return await wait(shared, job_id, owner, timeout_s)

    monkeypatch.setattr(Services, "wait", falter)
    assert (await generate(api)).status_code == 200
    assert len(failures) == 1


# The cache


async def number_of_runs(api: Api, *requests: dict[str, Any]) -> int:
    """Send requests one after the other while a worker makes a video for each job; return how many it made."""
    made: list[str] = []

    def end(job_id: str) -> None:
        made.append(job_id)
        api.finish(job_id, f"video {len(made)}".encode())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play, api, end, 99)
        for request in requests:
            answer = await ask(api, **request)
            assert answer.status_code == 200, answer.text
        tasks.cancel_scope.cancel()
    return len(made)


FRESH = {"headers": {"x-use-cache": "false"}}
SEEDED: dict[str, Any] = {"parameters": {"seed": 7}}
ANSWERED: list[tuple[str, str, list[dict[str, Any]], int]] = [
    ("the same request", "all", [{}, {}], 1),
    ("the same request in other words", "all", [{}, {"parameters": {"num_frames": 25.0}, "x": 1}], 1),
    ("another prompt", "all", [{}, {"inputs": "a dog"}], 2),
    ("another model", "all", [{}, {"path": "/models/Wan-AI/Wan2.1-T2V-1.3B"}], 2),
    ("another seed", "all", [SEEDED, {"parameters": {"seed": 8}}], 2),
    ("x-use-cache: false", "all", [{}, FRESH], 2),
    ("x-use-cache: 0", "all", [{}, {"headers": {"x-use-cache": "0"}}], 2),
    ("x-use-cache: true", "all", [{}, {"headers": {"x-use-cache": "true"}}], 1),
    ("options.use_cache", "all", [{}, {"options": {"use_cache": False}}], 2),
    ("an unseeded request, cache: seeded", "seeded", [{}, {}], 2),
    ("a seeded request, cache: seeded", "seeded", [SEEDED, SEEDED], 1),
    ("a seeded request, cache: off", "off", [SEEDED, SEEDED], 2),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("cache", "requests", "runs"), [row[1:] for row in ANSWERED], ids=[row[0] for row in ANSWERED])
async def test_which_second_request_is_answered_from_the_cache(
    make_api: Callable[..., Api], cache: str, requests: list[dict[str, Any]], runs: int
) -> None:
    api = make_api(dialects={"huggingface": {"cache": cache}})
    assert await number_of_runs(api, *requests) == runs


@pytest.mark.anyio
async def test_an_answer_from_the_cache_is_the_same_file_and_says_where_it_comes_from(api: Api) -> None:
    first = await generate(api)
    again = await ask(api)
    assert (again.status_code, again.content) == (200, first.content)
    assert (again.headers["x-compute-type"], again.headers["x-compute-time"]) == ("cache", "0.000")


@pytest.mark.anyio
async def test_nobody_is_answered_with_somebody_elses_video(api: Api) -> None:
    await generate(api, b"alice's video")
    answer = await generate(api, b"bob's video", headers=auth(api.other_key))
    assert answer.content == b"bob's video"
    assert (await ask(api)).content == b"alice's video", "and neither pushes the other's out"


@pytest.mark.anyio
async def test_identical_requests_in_flight_share_one_run(api: Api) -> None:
    answers: list[bytes] = []

    async def one() -> None:
        answers.append((await ask(api)).content)

    async def end() -> None:
        with anyio.fail_after(30):
            while not (ids := api.records.open_ids()):  # noqa: ASYNC110 Redis sets no event
                await anyio.sleep(0.01)
            while api.records.client.zcard(f"polyreel:waiting:{ids[0]}") < 5:  # noqa: ASYNC110 likewise
                await anyio.sleep(0.01)
        [job_id] = api.records.open_ids()
        api.finish(job_id, b"one run")

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(one)
        tasks.start_soon(end)
    assert answers == [b"one run"] * 5


@pytest.mark.anyio
async def test_a_failed_job_is_not_remembered(api: Api) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play, api, api.fail)
        assert (await ask(api)).status_code == 500
    assert (await generate(api)).status_code == 200


@pytest.mark.anyio
async def test_a_video_whose_file_is_gone_is_made_again(api: Api) -> None:
    await generate(api, b"first")
    for file in api.storage.folder.rglob("*.mp4"):
        file.unlink()
    assert (await generate(api, b"second")).content == b"second"


@pytest.mark.anyio
async def test_a_refused_submit_is_not_waited_for_by_the_next_request(make_api: Callable[..., Api]) -> None:
    full = make_api(max_queued=0)
    assert (await ask(full)).status_code == 429
    with anyio.fail_after(2):
        assert (await ask(full)).status_code == 429
