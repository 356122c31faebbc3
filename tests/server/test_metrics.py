"""`GET /metrics`: exact counts, whatever process made the change, and nothing of what was asked."""

from __future__ import annotations

import pytest

from polyreel.job import JobStatus
from polyreel.webhooks import Attempt, Hands
from tests.conftest import KEY, Api
from tests.core.jobs import queued, redis_time

pytestmark = pytest.mark.anyio


async def scrape(api: Api) -> dict[str, float]:
    """Return each sample's value by its name and labels."""
    answer = await api.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def submit(api: Api) -> str:
    body = {"key": KEY, "prompt": "a very secret prompt", "model_id": "ltx", "instant_response": True}
    assert (await api.http.post("/api/v6/video/text2video", json=body)).status_code == 200
    return api.newest().job.id


async def test_an_empty_server_counts_nothing(api: Api) -> None:
    assert await scrape(api) == {
        "polyreel_jobs_submitted_total": 0,
        "polyreel_jobs_requeued_total": 0,
        'polyreel_jobs_ended_total{status="succeeded"}': 0,
        'polyreel_jobs_ended_total{status="failed"}': 0,
        'polyreel_jobs_ended_total{status="cancelled"}': 0,
        "polyreel_jobs_open": 0,
        "polyreel_jobs_claimed": 0,
        "polyreel_workers": 0,
        "polyreel_webhooks_delivered_total": 0,
        "polyreel_webhooks_failed_total": 0,
        "polyreel_webhooks_retried_total": 0,
        "polyreel_webhooks_late_seconds": 0,
        "polyreel_couriers": 0,
    }


async def test_each_change_of_a_job_is_counted_once(api: Api) -> None:
    done, lost, waiting = await submit(api), await submit(api), await submit(api)
    api.finish(done)
    fence = api.claim(lost)
    assert api.records.release(lost, fence, counted=True)
    fence = api.claim(lost)
    for _ in range(2):  # the second is the same write again, after a lost reply
        assert api.records.advance(lost, fence, JobStatus.FAILED, error_code="timeout", error_message="too long")
    api.records.learn_seconds("ltx-tiny", 2.5)
    api.leases.learn_swap("ltx-tiny", 12.0)
    api.leases.beat("a-worker", {"models": ["ltx-tiny"], "loaded": ["ltx-tiny"]})
    held = await submit(api)
    api.claim(held)
    samples = await scrape(api)
    assert waiting in api.records.open_ids()
    assert samples["polyreel_jobs_submitted_total"] == 4
    assert samples["polyreel_jobs_requeued_total"] == 1
    assert samples['polyreel_jobs_ended_total{status="succeeded"}'] == 1
    assert samples['polyreel_jobs_ended_total{status="failed"}'] == 1
    assert samples["polyreel_jobs_open"] == 2
    assert samples["polyreel_jobs_claimed"] == 1
    assert samples['polyreel_jobs_waiting{model="ltx-tiny"}'] == 1
    assert samples['polyreel_workers_loaded{model="ltx-tiny"}'] == 1
    assert samples['polyreel_load_seconds_mean{model="ltx-tiny"}'] == 12
    assert samples["polyreel_workers"] == 1
    assert samples['polyreel_job_seconds_mean{model="ltx-tiny"}'] == 2.5


async def test_deliveries_of_webhooks_are_counted(api: Api) -> None:
    records, webhooks = api.records, api.app.state.services.queue.webhooks
    ended = [records.create(queued(webhook=f"https://{n}.example/"), max_open=9).job.id for n in range(4)]
    for job_id in ended:
        records.cancel(job_id)
    outcomes = iter(("delivered", "failed", "retry"))
    for taken in webhooks.take("courier", Hands(3, 3)):
        webhooks.note(taken, Attempt(1, 500, "", 1), next(outcomes), 300.0)
    records.client.zadd("polyreel:webhooks", {"3.example": redis_time(records.client) - 42})
    samples = await scrape(api)
    assert [samples[f"polyreel_webhooks_{what}_total"] for what in ("delivered", "failed", "retried")] == [1, 1, 1]
    assert samples["polyreel_webhooks_late_seconds"] == pytest.approx(42, abs=5)
    assert samples["polyreel_couriers"] == 1


async def test_metrics_tell_nothing_of_owners_keys_or_prompts(api: Api) -> None:
    await submit(api)
    text = (await api.http.get("/metrics")).text
    assert not any(word in text for word in (KEY, "alice", "secret", "prompt"))
