"""Novita's webhooks: where they may lead, what they are told, and their test mode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from polyreel.job import JobStatus
from polyreel.key_store import KeyStore, pepper_of
from polyreel.keys import KeyLimits
from polyreel.settings import Settings
from server.dialects import Dialect
from server.dialects.novita import DIALECT
from server.dialects.novita.settings import NovitaSettings
from tests.conftest import Api
from tests.dialects.test_novita import BASE, SUBMIT, auth, result
from tests.live.decode import decode

pytestmark = pytest.mark.anyio

URL = "https://hooks.example.com/novita?token=1"
MOCK = {"url": URL, "test_mode": {"enabled": True, "return_task_status": "TASK_STATUS_SUCCEED"}}


def told(api: Api, job_id: str, dialect: Dialect = DIALECT) -> dict[str, Any]:
    """Return what the webhook of a job is told, with readable links."""
    stored = api.records.get(job_id)
    assert stored is not None
    assert dialect.webhook is not None
    return dialect.webhook(stored, lambda key, _expires_at: f"https://files/{key}", 7200.0, NovitaSettings())


async def submit(api: Api, **webhook: Any) -> str:
    response = await api.http.post(
        SUBMIT, json=BASE | {"extra": {"webhook": {"url": URL, **webhook}}}, headers=auth(api.key)
    )
    assert response.status_code == 200, response.text
    return str(response.json()["task_id"])


async def test_a_webhook_is_kept_with_the_job(api: Api) -> None:
    job_id = await submit(api)
    job = api.newest().job
    assert (job.id, job.webhook, job.base_url) == (job_id, URL, "http://api.test")


async def test_the_end_is_told_as_a_task_result_in_an_envelope(api: Api) -> None:
    job_id = await submit(api)
    api.finish(job_id)
    event = told(api, job_id)
    assert list(event) == ["event_type", "payload"]
    assert event["event_type"] == "ASYNC_TASK_RESULT"
    polled = await result(api, job_id)
    assert event["payload"]["videos"] == [
        {"video_url": f"https://files/out/{job_id}/{job_id}.mp4", "video_url_ttl": "3600", "video_type": "mp4"}
    ]
    assert event["payload"] | {"videos": []} == polled | {"videos": []}


async def test_a_failure_is_told_with_its_reason(api: Api) -> None:
    job_id = await submit(api)
    api.fail(job_id, "The GPU has too little memory.")
    payload = told(api, job_id)["payload"]
    assert (payload["task"]["status"], payload["task"]["reason"], payload["videos"]) == (
        "TASK_STATUS_FAILED",
        "The GPU has too little memory.",
        [],
    )


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "https://169.254.169.254/latest", "http://[::1]:8000/"])
async def test_a_webhook_into_the_servers_own_network_is_refused(api: Api, url: str) -> None:
    response = await api.http.post(SUBMIT, json=BASE | {"extra": {"webhook": {"url": url}}}, headers=auth(api.key))
    assert (response.status_code, response.json()["reason"]) == (400, "INVALID_REQUEST_BODY")
    assert response.json()["message"].startswith("extra.webhook.url ")
    assert api.records.open_ids() == []


async def test_the_test_mode_generates_nothing_and_its_task_can_be_read_and_played(api: Api) -> None:
    job_id = await submit(api, test_mode={"enabled": True, "return_task_status": "TASK_STATUS_SUCCEED"})
    assert api.records.open_ids() == []
    polled = await result(api, job_id)
    assert (polled["task"]["status"], polled["task"]["progress_percent"]) == ("TASK_STATUS_SUCCEED", 100)
    content = (await api.http.get(polled["videos"][0]["video_url"])).content
    stored = api.records.get(job_id)
    assert stored is not None
    [output] = stored.job.outputs
    clip = decode(content)
    assert (
        (clip.shape, clip.fps) == ((output.num_frames, output.height, output.width), output.fps) == ((8, 64, 64), 8.0)
    )
    assert (output.bytes, output.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert told(api, job_id)["payload"]["task"]["status"] == "TASK_STATUS_SUCCEED"


async def test_the_test_mode_can_fail(api: Api) -> None:
    job_id = await submit(api, test_mode={"enabled": True, "return_task_status": "TASK_STATUS_FAILED"})
    polled = await result(api, job_id)
    assert (polled["task"]["status"], polled["task"]["reason"]) == (
        "TASK_STATUS_FAILED",
        "This is the mock failure of the webhook's test mode; nothing was generated.",
    )
    assert polled["videos"] == []


async def test_a_mock_task_is_due_at_its_webhook_like_any_other(api: Api) -> None:
    job_id = await submit(api, test_mode={"enabled": True, "return_task_status": "TASK_STATUS_FAILED"})
    assert api.records.client.zrange("polyreel:webhooks:line:hooks.example.com", 0, -1) == [job_id]


async def test_a_mock_task_counts_no_worker_and_leaves_nothing_open(api: Api) -> None:
    await submit(api, test_mode={"enabled": True, "return_task_status": "TASK_STATUS_SUCCEED"})
    client = api.records.client
    assert client.hgetall("polyreel:open:owners") == {}
    assert client.zcard("polyreel:ready:animatediff-tiny") == 0
    assert client.hget("polyreel:counts", "succeeded") == "1"


async def test_the_test_mode_refuses_what_would_be_refused_in_earnest(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={})
    entry = api.app.state.services.catalogue.models["atelier"]
    named = entry.model_copy(update={"names": {"novita": ("wan.safetensors",)}})
    api = make_api(models={"atelier": named}, loras={}, embeddings={}, dialects={})
    body = BASE | {"model_name": "wan.safetensors", "closed_loop": True, "extra": {"webhook": MOCK}}
    response = await api.http.post(SUBMIT, json=body, headers=auth(api.key))
    assert (response.status_code, response.json()["message"]) == (
        400,
        "closed_loop: wan.safetensors cannot do this (closed_loop). Models that can: none here.",
    )


async def test_the_test_mode_is_held_to_the_keys_models_and_limits(api: Api, settings: Settings) -> None:
    store = KeyStore(api.records.client, pepper_of(settings))
    body = BASE | {"extra": {"webhook": MOCK}}
    other, _ = store.create("carol", limits=KeyLimits(models=("ltx-tiny",)))
    response = await api.http.post(SUBMIT, json=body, headers=auth(other))
    assert (response.status_code, response.json()["reason"]) == (403, "API_NOT_ALLOWED")

    seldom, key = store.create("dave", limits=KeyLimits(requests_per_minute=1))
    responses = [await api.http.post(SUBMIT, json=body, headers=auth(seldom)) for _ in range(2)]
    assert [(one.status_code, one.json().get("reason")) for one in responses] == [
        (200, None),
        (429, "RATE_LIMIT_EXCEEDED"),
    ]
    usage = api.records.usage(f"key:{key.id}")
    assert (usage.submits, usage.gpu_seconds) == (1, 0)
    assert samples_of(api) == [responses[0].json()["task_id"]], "what is refused leaves no file"


async def test_a_repeated_test_mode_is_one_task_with_one_file(api: Api) -> None:
    headers = auth(api.key) | {"Idempotency-Key": "one"}
    answers = [await api.http.post(SUBMIT, json=BASE | {"extra": {"webhook": MOCK}}, headers=headers) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert samples_of(api) == [answers[0].json()["task_id"]]
    other = BASE | {"steps": 9, "extra": {"webhook": MOCK}}
    reused = await api.http.post(SUBMIT, json=other, headers=headers)
    assert (reused.status_code, samples_of(api)) == (422, [answers[0].json()["task_id"]])


async def test_a_test_mode_that_comes_often_at_once_is_one_task_with_one_file(api: Api) -> None:
    headers, answers = auth(api.key) | {"Idempotency-Key": "one"}, []

    async def send() -> None:
        body = BASE | {"extra": {"webhook": MOCK}}
        answers.append(await api.http.post(SUBMIT, json=body, headers=headers))

    async with anyio.create_task_group() as senders:
        for _ in range(8):
            senders.start_soon(send)
    [task_id] = {answer.json()["task_id"] for answer in answers}
    assert samples_of(api) == [task_id]
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


def samples_of(api: Api) -> list[str]:
    """Return the ids of the jobs that have files."""
    return sorted({path.stem for path in (api.scratch / "results").rglob("*.mp4")})


async def test_a_test_mode_that_is_off_makes_a_real_task(api: Api) -> None:
    job_id = await submit(api, test_mode={"enabled": False, "return_task_status": "TASK_STATUS_SUCCEED"})
    assert api.records.open_ids() == [job_id]
    assert (await result(api, job_id))["task"]["status"] == "TASK_STATUS_QUEUED"


async def test_a_webhook_of_null_is_none(api: Api) -> None:
    response = await api.http.post(SUBMIT, json=BASE | {"extra": {"webhook": None}}, headers=auth(api.key))
    assert response.status_code == 200
    assert (api.newest().job.webhook, api.newest().job.status) == ("", JobStatus.QUEUED)
