"""Webhooks of the native API: asked for at submit, their log, once more, and the secret that proves them."""

from __future__ import annotations

import base64
from collections.abc import Callable

import httpx2
import pytest

from polyreel.webhooks import Attempt, Hands
from tests.conftest import Api

pytestmark = pytest.mark.anyio

URL = "https://hooks.example.com/polyreel?token=1"


async def submit(api: Api, **fields: object) -> httpx2.Response:
    body = {"model": "ltx-tiny", "prompt": "A sunset", **fields}
    return await api.http.post("/polyreel/v1/jobs", json=body, headers=bearer(api.key))


async def submitted(api: Api, **fields: object) -> str:
    answer = await submit(api, **fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def get(api: Api, path: str, key: str = "") -> httpx2.Response:
    return await api.http.get(f"/polyreel/v1/{path}", headers=bearer(key or api.key))


async def redeliver(api: Api, job_id: str, key: str = "") -> httpx2.Response:
    return await api.http.post(f"/polyreel/v1/jobs/{job_id}/redeliver", headers=bearer(key or api.key))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_the_log_says_what_became_of_each_attempt(api: Api) -> None:
    job_id = await submitted(api, webhook=URL)
    webhooks = api.app.state.services.queue.webhooks
    waiting = (await get(api, f"jobs/{job_id}/deliveries")).json()
    message = f"msg_{job_id.replace('-', '')}"
    assert waiting == {
        "id": message, "url": URL, "state": "waiting", "attempts": 0, "next_at": None, "log": [],
    }  # fmt: skip
    api.finish(job_id)
    [taken] = webhooks.take("courier", Hands(1, 1))
    webhooks.note(taken, Attempt(1, 503, "answered 503", 21), "retry", 300.0)
    pending = (await get(api, f"jobs/{job_id}/deliveries")).json()
    assert (pending["state"], pending["attempts"]) == ("pending", 1)
    [entry] = pending["log"]
    assert {name: entry[name] for name in ("attempt", "status", "error", "ms")} == {
        "attempt": 1, "status": 503, "error": "answered 503", "ms": 21,
    }  # fmt: skip
    assert entry["next_at"] == pytest.approx(entry["at"] + 300, abs=0.01)
    assert pending["next_at"] == pytest.approx(entry["next_at"], abs=0.01)


async def test_a_webhook_can_be_asked_for_again(api: Api) -> None:
    job_id = await submitted(api, webhook=URL)
    webhooks = api.app.state.services.queue.webhooks
    early = await redeliver(api, job_id)
    assert (early.status_code, early.json()["code"]) == (409, "not_deliverable")
    assert early.json()["detail"] == "This job has not ended yet; its webhook is delivered when it does."
    api.fail(job_id)
    [taken] = webhooks.take("courier", Hands(1, 1))
    webhooks.note(taken, Attempt(1, 410, "answered 410: this receiver wants no more", 5), "failed")
    assert (await get(api, f"jobs/{job_id}/deliveries")).json()["state"] == "failed"
    again = await redeliver(api, job_id)
    assert (again.status_code, again.json()["state"], again.json()["attempts"]) == (202, "pending", 1)
    [taken] = webhooks.take("courier", Hands(1, 1))
    assert (taken.job_id, taken.attempt, taken.attempt_of_round) == (job_id, 2, 1)


async def test_a_job_without_a_webhook_has_nothing_to_deliver(api: Api) -> None:
    job_id = await submitted(api)
    api.finish(job_id)
    for answer in (await get(api, f"jobs/{job_id}/deliveries"), await redeliver(api, job_id)):
        assert (answer.status_code, answer.json()["code"]) == (409, "not_deliverable")
        assert answer.json()["detail"] == "This job was submitted without a webhook, so there is nothing to deliver."


async def test_another_owners_deliveries_read_as_if_there_were_none(api: Api) -> None:
    job_id = await submitted(api, webhook=URL)
    api.finish(job_id)
    unknown = await get(api, "jobs/00000000-0000-4000-8000-000000000000/deliveries")
    assert unknown.status_code == 404
    for answer in (
        await get(api, f"jobs/{job_id}/deliveries", api.other_key),
        await redeliver(api, job_id, api.other_key),
    ):
        assert (answer.status_code, answer.json()) == (404, unknown.json())
    assert (await get(api, f"jobs/{job_id}/deliveries")).json()["attempts"] == 0


async def test_every_owner_reads_a_secret_of_its_own(api: Api) -> None:
    answer = await get(api, "webhooks/secret")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    secret = answer.json()["secret"]
    assert (secret[:6], len(base64.b64decode(secret[6:])), answer.json()["older"]) == ("whsec_", 32, [])
    assert (await get(api, "webhooks/secret")).json()["secret"] == secret
    assert (await get(api, "webhooks/secret", api.other_key)).json()["secret"] != secret
    assert (await api.http.get("/polyreel/v1/webhooks/secret")).status_code == 401


@pytest.mark.parametrize(
    "url", ["http://hooks.example.com/", "https://127.0.0.1/", "https://10.0.0.7/", "ftp://a.example/"]
)
async def test_an_unsafe_address_is_refused_at_submit(api: Api, url: str) -> None:
    answer = await submit(api, webhook=url)
    assert (answer.status_code, answer.json()["field"]) == (400, "webhook")
    assert api.records.open_ids() == []


async def test_internal_receivers_can_be_allowed(make_api: Callable[..., Api]) -> None:
    api = make_api(webhook_allow=("10.0.0.0/8",))
    job_id = await submitted(api, webhook="http://10.0.0.7:8080/hook")
    api.finish(job_id)
    [taken] = api.app.state.services.queue.webhooks.take("courier", Hands(1, 1))
    assert taken.receiver == "10.0.0.7:8080"
