"""ModelsLab v6, as its documents and real clients speak it: keys, answers, waiting."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
import redis
from pydantic import SecretStr

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.errors import QueueUnavailable
from polyreel.job import JobStatus
from server.services import Services
from tests.conftest import Api
from tests.dialects.modelslab import FETCH, SUBMIT, body, fetch, submit


@pytest.mark.anyio
async def test_the_documented_loop_ends_with_a_link_to_the_video(api: Api) -> None:
    submitted = await submit(api, num_frames=25)
    assert submitted["status"] == "processing"
    assert (await fetch(api, submitted["id"]))["status"] == "processing"
    api.finish(api.newest().job.id, b"mp4 bytes")
    result = await fetch(api, submitted["id"])
    assert result["status"] == "success"
    assert result["output"] == submitted["future_links"] == result["proxy_links"]
    assert (await api.http.get(result["output"][0])).content == b"mp4 bytes"


# Keys


@pytest.mark.anyio
@pytest.mark.parametrize("header", [{"Authorization": "Bearer {key}"}, {"key": "{key}"}, {"Key": "{key}"}])
async def test_the_key_may_come_in_a_header(api: Api, header: dict[str, str]) -> None:
    headers = {name: value.format(key=api.key) for name, value in header.items()}
    submitted = await api.http.post(SUBMIT, json={"prompt": "x"}, headers=headers)
    assert submitted.status_code == 200
    fetched = await api.http.post(f"{FETCH}/{submitted.json()['id']}", headers=headers)
    assert fetched.json()["status"] == "processing"


@pytest.mark.anyio
@pytest.mark.parametrize(("in_body", "in_header", "status"), [("{key}", "{key}", 200), ("nope", "{key}", 401)])
async def test_one_key_may_come_twice_and_a_wrong_one_in_the_body_is_not_made_good_by_a_header(
    api: Api, in_body: str, in_header: str, status: int
) -> None:
    sent = {"prompt": "x", "key": in_body.format(key=api.key)}
    response = await api.http.post(SUBMIT, json=sent, headers={"key": in_header.format(key=api.key)})
    assert response.status_code == status
    if status == 401:
        assert response.json() == {"status": "error", "message": "Invalid API key"}


@pytest.mark.anyio
@pytest.mark.parametrize("key", [None, ""])
async def test_a_missing_key_is_asked_for(api: Api, key: str | None) -> None:
    response = await api.http.post(SUBMIT, json={"prompt": "x", "key": key})
    assert (response.status_code, response.json()) == (401, {"status": "error", "message": "API key required"})


@pytest.mark.anyio
async def test_no_answer_repeats_the_key(api: Api) -> None:
    submitted = await api.http.post(SUBMIT, json=body(api))
    api.finish(api.newest().job.id)
    fetched = await api.http.post(f"{FETCH}/{submitted.json()['id']}", json={"key": api.key})
    assert api.key not in submitted.text + fetched.text


# Answers


@pytest.mark.anyio
async def test_a_processing_answer_has_every_documented_key(api: Api) -> None:
    answer = await submit(api, seed=7)
    job_id = api.newest().job.id
    links = answer.pop("future_links")
    assert len(links) == 1
    assert links[0].startswith(f"http://api.test/files/out/{job_id}/{job_id}.gif?exp=")
    assert answer.pop("meta")["file_prefix"] == job_id
    assert answer == {
        "status": "processing",
        "tip": "Your video is processing in background, you can get this video using fetch API",
        "eta": 10,
        "message": "Try to fetch request after seconds estimated",
        "fetch_result": f"http://api.test/api/v6/video/fetch/{answer['id']}",
        "id": api.newest().number,
        "output": [],
    }
    assert type(answer["id"]) is int
    assert type(answer["eta"]) is int


@pytest.mark.anyio
@pytest.mark.parametrize(
    "status",
    [JobStatus.QUEUED, JobStatus.LOADING, JobStatus.RUNNING, JobStatus.ENCODING, JobStatus.UPLOADING],
)
async def test_every_state_before_the_end_is_processing(api: Api, status: JobStatus) -> None:
    submitted = await submit(api)
    job_id = api.newest().job.id
    if status is not JobStatus.QUEUED:
        api.records.advance(job_id, api.claim(job_id), status, progress=40)
    answer = await fetch(api, submitted["id"])
    assert answer["status"] == "processing"
    assert {**answer, "eta": 0} == {**submitted, "eta": 0}


@pytest.mark.anyio
async def test_a_fetched_success_has_no_future_links(api: Api) -> None:
    submitted = await submit(api)
    api.finish(api.newest().job.id)
    answer = await fetch(api, submitted["id"])
    assert list(answer) == ["status", "generationTime", "id", "output", "proxy_links", "meta"]
    assert type(answer["generationTime"]) is float
    assert answer["meta"] == submitted["meta"]


@pytest.mark.anyio
async def test_the_links_are_the_same_in_every_answer_whatever_the_host(api: Api) -> None:
    submitted = await submit(api)
    api.finish(api.newest().job.id)
    response = await api.http.post(
        f"{FETCH}/{submitted['id']}", json={"key": api.key}, headers={"Host": "other.example"}
    )
    assert response.json()["output"] == submitted["future_links"]


@pytest.mark.anyio
async def test_a_failed_job_is_failed_with_status_200(api: Api) -> None:
    submitted = await submit(api)
    api.fail(api.newest().job.id, "The GPU has too little memory.")
    assert await fetch(api, submitted["id"]) == {
        "status": "failed",
        "id": submitted["id"],
        "message": "The GPU has too little memory.",
        "output": [],
    }


@pytest.mark.anyio
async def test_a_cancelled_job_is_failed(api: Api) -> None:
    submitted = await submit(api)
    api.records.advance(api.newest().job.id, None, JobStatus.CANCELLED)
    answer = await fetch(api, submitted["id"])
    assert (answer["status"], answer["message"]) == ("failed", "The job was cancelled.")


@pytest.mark.anyio
async def test_a_failure_without_words_is_not_told_as_a_cancellation(api: Api) -> None:
    answer = await submit(api)
    api.fail(api.newest().job.id, message="")
    assert (await fetch(api, answer["id"]))["message"] == "The job failed."


@pytest.mark.anyio
async def test_a_job_can_be_fetched_by_its_uuid(api: Api) -> None:
    submitted = await submit(api)
    assert (await fetch(api, api.newest().job.id))["id"] == submitted["id"]


@pytest.mark.anyio
async def test_another_owners_job_reads_exactly_as_one_that_never_was(api: Api) -> None:
    submitted = await submit(api)
    theirs = await api.http.post(f"{FETCH}/{submitted['id']}", json={"key": api.other_key})
    nobodys = await api.http.post(f"{FETCH}/1", json={"key": api.other_key})
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.content == nobodys.content
    assert theirs.json() == {"status": "failed", "message": "Request not found", "id": "", "output": []}


@pytest.mark.anyio
@pytest.mark.parametrize("job_id", ["0", "-1", "x", "1.5", "9" * 40, "00000000-0000-4000-8000-000000000000", "é"])
async def test_any_text_can_be_fetched_and_is_unknown(api: Api, job_id: str) -> None:
    assert (await fetch(api, job_id, 404))["status"] == "failed"


@pytest.mark.anyio
async def test_a_job_of_another_dialect_can_be_fetched(api: Api) -> None:
    wire = {
        "model_name": "darkSushiMixMix_225D_64380.safetensors",
        "height": 256,
        "width": 256,
        "steps": 8,
        "prompts": [{"frames": 8, "prompt": "a cat"}],
        "seed": 7,
    }
    await api.http.post("/v3/async/txt2video", json=wire, headers={"Authorization": api.key})
    job_id = api.newest().job.id
    api.finish(job_id)
    answer = await fetch(api, job_id)
    assert answer["status"] == "success"
    assert answer["meta"] == {
        "prompt": "a cat",
        "negative_prompt": "",
        "model_id": "animatediff-tiny",
        "height": 256,
        "width": 256,
        "num_frames": 8,
        "num_inference_steps": 8,
        "guidance_scale": 7.5,
        "clip_skip": None,
        "fps": 8,
        "seed": 7,
        "output_type": "mp4",
        "upscale_height": None,
        "upscale_width": None,
        "upscale_strength": 0.6,
        "upscale_guidance_scale": 12,
        "upscale_num_inference_steps": 20,
        "use_improved_sampling": "no",
        "improved_sampling_seed": 42,
        "instant_response": "no",
        "temp": "no",
        "base64": "no",
        "watermark": "no",
        "webhook": None,
        "track_id": None,
        "id": answer["id"],
        "file_prefix": job_id,
    }


@pytest.mark.anyio
async def test_a_job_of_the_version_before_keeps_its_links(api: Api) -> None:
    submitted = await submit(api, temp=True)
    job = api.newest().job
    vendor = {**job.vendor, "temp": True, "base_url": "https://earlier.example"}
    # As 0.1 wrote it: what has fields of its own today stood in `vendor`.
    api.records.client.hset(f"polyreel:job:{job.id}", mapping={"vendor": json.dumps(vendor)})
    api.records.client.hdel(f"polyreel:job:{job.id}", "base_url", "keep_s")
    answer = await fetch(api, submitted["id"])
    assert answer["future_links"] == [
        submitted["future_links"][0].replace("http://api.test", "https://earlier.example")
    ]


# Waiting


async def finish_the_next(api: Api) -> None:
    while not api.records.open_ids():  # noqa: ASYNC110 the record is in Redis, which sets no event
        await anyio.sleep(0.01)
    api.finish(api.newest().job.id)


@pytest.mark.anyio
async def test_a_submit_is_held_until_the_video_is_ready(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 10}})
    async with anyio.create_task_group() as group:
        group.start_soon(finish_the_next, api)
        answer = await submit(api)
    assert answer["status"] == "success"
    assert answer["eta"] == 0
    assert answer["future_links"] == answer["output"] == answer["proxy_links"]


@pytest.mark.anyio
async def test_a_submit_that_is_not_ready_in_time_is_processing(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 0.2}})
    assert (await submit(api))["status"] == "processing"


@pytest.mark.anyio
async def test_instant_response_does_not_wait(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 60}})
    with anyio.fail_after(5):
        answer = await submit(api, instant_response=True)
    assert (answer["status"], answer["meta"]["instant_response"]) == ("processing", "yes")


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A Valkey that a test may harm."""
    broker = start_embedded(tmp_path / "valkey")
    yield broker
    broker.process.send_signal(signal.SIGCONT)
    broker.stop()


def kill(broker: EmbeddedBroker) -> None:
    broker.process.send_signal(signal.SIGKILL)


def hang(broker: EmbeddedBroker) -> None:
    broker.process.send_signal(signal.SIGSTOP)


def forget(broker: EmbeddedBroker) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.flushall()


@pytest.mark.anyio
@pytest.mark.parametrize("harm", [kill, hang, forget])
async def test_a_client_learns_its_id_also_when_redis_goes_away_while_it_is_held(
    make_api: Callable[..., Api], own_broker: EmbeddedBroker, harm: Callable[[EmbeddedBroker], None]
) -> None:
    api = make_api(redis_url=SecretStr(own_broker.url), dialects={"modelslab": {"hold_s": 60}})
    answers, numbers, harmed_at = [], [], []

    async def harm_after_submit() -> None:
        with redis.Redis.from_url(own_broker.url, decode_responses=True) as client:
            while not client.zcard("polyreel:open"):  # noqa: ASYNC110 the record sets no event
                await anyio.sleep(0.01)
            await anyio.sleep(0.1)
            numbers.append(int(str(client.get("polyreel:number"))))
        harmed_at.append(time.monotonic())
        harm(own_broker)

    async with anyio.create_task_group() as group:
        group.start_soon(harm_after_submit)
        answers.append(await submit(api))
    assert (answers[0]["status"], answers[0]["id"]) == ("processing", numbers[0])
    assert answers[0]["fetch_result"].endswith(f"/fetch/{numbers[0]}")
    assert answers[0]["eta"] == 10
    assert time.monotonic() - harmed_at[0] < 6


@pytest.mark.anyio
async def test_an_estimate_that_redis_does_not_give_is_guessed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> int:
        raise QueueUnavailable("The queue does not answer right now.")

    monkeypatch.setattr(Services, "eta_s", away)
    submitted = await submit(api, instant_response=True)
    assert (submitted["status"], submitted["eta"]) == ("processing", 10)
    assert (await fetch(api, submitted["id"]))["eta"] == 10


@pytest.mark.anyio
async def test_an_estimate_that_hangs_is_guessed_within_seconds(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(*_: object) -> int:
        await anyio.sleep(60)
        return 60

    monkeypatch.setattr(Services, "eta_s", hangs)
    with anyio.fail_after(3):
        assert (await submit(api, instant_response=True))["eta"] == 10


@pytest.mark.anyio
@pytest.mark.parametrize(("temp", "kept_s"), [(True, 24 * 3600), (False, 7 * 24 * 3600)])
async def test_a_temporary_video_is_kept_and_linked_for_a_day(api: Api, temp: bool, kept_s: int) -> None:
    answer = await submit(api, temp=temp)
    expires_at = int(answer["future_links"][0].partition("exp=")[2].partition("&")[0])
    assert expires_at == int(api.newest().job.created_at + kept_s)
    job_id = api.newest().job.id
    api.finish(job_id)
    assert kept_s - 5 <= api.records.client.ttl(f"polyreel:job:{job_id}") <= kept_s


@pytest.mark.anyio
async def test_the_link_to_a_job_that_another_dialect_keeps_briefly_lasts_as_long_as_its_file(api: Api) -> None:
    wire = {"model": "ltx-tiny", "prompt": "x", "keep_s": 60}
    await api.http.post("/polyreel/v1/jobs", json=wire, headers={"Authorization": f"Bearer {api.key}"})
    job_id = api.newest().job.id
    api.records.client.hset(f"polyreel:job:{job_id}", "created_at", str(time.time() - 300))  # it took five minutes
    api.finish(job_id, b"the video")
    [link] = (await fetch(api, job_id))["output"]
    assert (await api.http.get(link)).content == b"the video"
