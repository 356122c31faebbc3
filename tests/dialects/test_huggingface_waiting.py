"""How long Hugging Face's clients wait, and which of them are answered with a video that is there already."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from polyreel.errors import QueueUnavailable
from polyreel.records import StoredJob
from polyreel.settings import Settings
from server.pictures import Picture
from server.services import Services
from tests.conftest import Api
from tests.dialects.huggingface import LTX, ask, auth, beat, generate, play
from tests.server.pictures import png

LINK = "https://example.com/cat.png"

# Waiting


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
    beat(impatient, "atelier")
    began = time.monotonic()
    answer = await ask(impatient)
    assert time.monotonic() - began >= 1
    assert answer.status_code == 503
    assert answer.json()["job_id"] == impatient.newest().job.id


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
                 {"options": {"wait_for_model": True}}, {"headers": {"X-Scale-Up-Timeout": "600"}}]
)  # fmt: skip
async def test_a_client_that_asks_to_wait_is_held(impatient: Api, request_: dict[str, Any]) -> None:
    assert (await generate(impatient, **request_)).status_code == 200


@pytest.mark.anyio
async def test_nobody_is_held_for_longer_than_the_server_allows(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"huggingface": {"wait_s": 0.1}})
    answer = await ask(api, headers={"X-Scale-Up-Timeout": "600"})
    assert (answer.status_code, answer.json()["error"]) == (
        504,
        "The video was not ready within 0.1 seconds; its job goes on.",
    )


@pytest.mark.anyio
@pytest.mark.parametrize("inputs", [LINK, {"prompt": "a cat", "image": LINK}], ids=["huggingface", "universal"])
async def test_fetching_a_picture_is_part_of_the_wait(
    make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch, inputs: Any
) -> None:
    async def fetch(shared: Services, field: str, text: str) -> Picture:
        assert text == LINK
        await anyio.sleep(2)
        return await shared.check_picture(field, png(9, 7))

    monkeypatch.setattr(Services, "fetch_picture", fetch)
    api = make_api(dialects={name: {"wait_s": 2.0} for name in ("huggingface", "universal")})
    began = time.monotonic()
    answer = await ask(api, path=f"{LTX}/pipeline/image-to-video", inputs=inputs)
    assert time.monotonic() - began < 3.7  # and not 4
    assert (answer.status_code, len(answer.json()["job_id"])) == (504, 36)


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
PICTURE: dict[str, Any] = {"inputs": base64.b64encode(png(9, 7)).decode()}
SEEDED: dict[str, Any] = {"parameters": {"seed": 7}}
ANSWERED: list[tuple[str, str, list[dict[str, Any]], int]] = [
    ("the same request", "all", [{}, {}], 1),
    ("the same request in other words", "all", [{}, {"parameters": {"num_frames": 25.0}, "x": 1}], 1),
    ("another prompt", "all", [{}, {"inputs": "a dog"}], 2),
    ("another model", "all", [{}, {"path": "/models/Wan-AI/Wan2.1-T2V-1.3B"}], 2),
    ("another seed", "all", [SEEDED, {"parameters": {"seed": 8}}], 2),
    ("the same picture, in base64 and as the body", "all", [PICTURE, {"content": png(9, 7)}], 1),
    ("another picture", "all", [PICTURE, {"content": png(7, 9)}], 2),
    ("the same picture and a prompt", "all", [PICTURE, {**PICTURE, "parameters": {"prompt": "a cat"}}], 2),
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
async def test_a_changed_companion_makes_the_videos_of_pictures_anew(
    make_api: Callable[..., Api], settings: Settings
) -> None:
    ltx = settings.models["ltx-tiny"].model_copy(update={"tasks": ("t2v",), "i2v": "atelier"})
    moved = settings.models["atelier"].model_copy(update={"revision": "another"})
    before = make_api(models={**settings.models, "ltx-tiny": ltx}, dialects={})
    after = make_api(models={**settings.models, "ltx-tiny": ltx, "atelier": moved}, dialects={})
    assert await number_of_runs(before, PICTURE, PICTURE) == 1
    assert await number_of_runs(after, PICTURE, PICTURE) == 1, "none of the old one's"


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
