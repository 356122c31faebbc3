"""`GET /metrics`: exact counts, whatever process made the change, and nothing of what was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from polyreel.errors import StorageAway
from polyreel.job import JobStatus
from polyreel.metrics import LOADS, METRICS, WAITED, Histogram, observed
from polyreel.storage.local import LocalStorage
from polyreel.webhooks import Attempt, Hands
from server import storage_watch
from tests.conftest import KEY, Api
from tests.core.jobs import BATCHES, REQUEST, LosesReplies, claim, losing_replies, queued, redis_time

pytestmark = pytest.mark.anyio

Labels = frozenset[tuple[str, str]]


async def scrape(api: Api) -> dict[str, dict[Labels, float]]:
    """Return each sample's values by their labels; Prometheus' own parser must take the text."""
    answer = await api.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            values = found.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in values, f"{sample.name} has {dict(labels)} twice"
            values[labels] = sample.value
    return found


def only(samples: dict[str, dict[Labels, float]], name: str) -> list[dict[str, str | float]]:
    """Return what a metric counted, without what it counted 0 of."""
    rows = [dict(labels) | {"value": value} for labels, value in samples.get(name, {}).items() if value]
    return sorted(rows, key=lambda row: sorted(map(str, row.items())))


async def submit(api: Api) -> str:
    body = {"key": KEY, "prompt": "a very secret prompt", "model_id": "ltx", "instant_response": True}
    assert (await api.http.post("/api/v6/video/text2video", json=body)).status_code == 200
    return api.newest().job.id


async def test_an_empty_server_counts_nothing_yet_and_says_so(api: Api) -> None:
    samples = await scrape(api)
    assert only(samples, "polyreel_jobs_submitted_total") == []
    ends = samples["polyreel_jobs_ended_total"]
    assert ends[frozenset({("dialect", "novita"), ("model", "ltx-tiny"), ("status", "failed")})] == 0
    assert len(ends) == 3 * 6 * len(api.app.state.services.catalogue.models)
    assert [samples[name] for name in ("polyreel_workers", "polyreel_couriers", "polyreel_jobs_open")] == [
        {frozenset(): 0}
    ] * 3
    assert samples["polyreel_redis_up"] == {frozenset(): 1}
    assert samples["polyreel_info"] == {frozenset({("version", "0.1.0")}): 1}


async def test_each_change_of_a_job_is_counted_once_by_dialect_and_model(api: Api) -> None:
    done, lost, waiting = await submit(api), await submit(api), await submit(api)
    api.finish(done)
    fence = api.claim(lost)
    assert api.records.release(lost, fence, counted=True)
    fence = api.claim(lost)
    for _ in range(2):  # the second is the same write again, after a lost reply
        assert api.records.advance(lost, fence, JobStatus.FAILED, error_code="timeout", error_message="too long")
    held = await submit(api)
    api.claim(held)
    samples = await scrape(api)
    ours = {"dialect": "modelslab", "model": "ltx-tiny"}
    assert waiting in api.records.open_ids()
    assert only(samples, "polyreel_jobs_submitted_total") == [ours | {"value": 4}]
    assert only(samples, "polyreel_jobs_ended_total") == [
        ours | {"status": "failed", "value": 1},
        ours | {"status": "succeeded", "value": 1},
    ]
    assert samples["polyreel_jobs_requeued_total"] == {frozenset(): 1}
    assert samples["polyreel_jobs_open"] == {frozenset(): 2}
    assert samples["polyreel_jobs_claimed"] == {frozenset(): 1}
    assert only(samples, "polyreel_jobs_waiting") == [{"model": "ltx-tiny", "value": 1}]


async def test_workers_models_and_gpus_are_shown_as_their_heartbeats_say(api: Api) -> None:
    gpu = {
        "name": "Big One",
        "memory_total_bytes": 80_000_000_000,
        "memory_used_bytes": 20_000_000_000,
        "utilization_percent": 75,
        "temperature_c": 61,
        "power_w": 299.5,
    }
    api.leases.beat("with-gpu", {"models": ["ltx-tiny"], "loaded": ["ltx-tiny"], "gpu": gpu})
    api.leases.beat("without", {"models": ["ltx-tiny"], "loaded": ["ltx-tiny"], "gpu": None})
    api.records.learn_seconds("ltx-tiny", 2.5)
    api.leases.learn_swap("ltx-tiny", 12.0)
    samples = await scrape(api)
    assert samples["polyreel_workers"] == {frozenset(): 2}
    assert only(samples, "polyreel_workers_loaded") == [{"model": "ltx-tiny", "value": 2}]
    assert only(samples, "polyreel_gpu_memory_used_bytes") == [{"worker": "with-gpu", "value": 2e10}]
    assert only(samples, "polyreel_gpu_memory_total_bytes") == [{"worker": "with-gpu", "value": 8e10}]
    assert only(samples, "polyreel_gpu_utilization_ratio") == [{"worker": "with-gpu", "value": 0.75}]
    assert only(samples, "polyreel_gpu_temperature_celsius") == [{"worker": "with-gpu", "value": 61}]
    assert only(samples, "polyreel_gpu_power_watts") == [{"worker": "with-gpu", "value": 299.5}]
    assert only(samples, "polyreel_load_seconds_mean") == [{"model": "ltx-tiny", "value": 12}]
    assert only(samples, "polyreel_job_seconds_mean") == [{"model": "ltx-tiny", "value": 2.5}]


async def test_the_way_of_a_job_is_measured_stage_by_stage(api: Api) -> None:
    job_id = await submit(api)
    fence = api.claim(job_id)
    for step in (1, 2, 2, 4):  # a report may come twice, and one may be left out
        assert api.records.advance(job_id, fence, JobStatus.RUNNING, stage="denoising", step=step, total_steps=4)
    timings = {"load": 0.2, "text_encoding": 0.3, "denoising": 4.0, "decoding": 0.5, "generate": 4.8, "encode": 0.75}
    for _ in range(2):
        assert api.records.advance(job_id, fence, JobStatus.SUCCEEDED, timings=timings | {"store": 0.01})
    samples = await scrape(api)
    sums = {row["stage"]: row["value"] for row in only(samples, "polyreel_stage_seconds_sum")}
    assert sums == {
        "load": 0.2, "text_encoding": 0.3, "denoising": 4.0, "decoding": 0.5, "encode": 0.75, "store": 0.01,
    }  # fmt: skip
    assert {row["value"] for row in only(samples, "polyreel_stage_seconds_count")} == {1}
    assert only(samples, "polyreel_steps_total") == [{"model": "ltx-tiny", "value": 4}]
    assert only(samples, "polyreel_step_seconds_sum") == [{"model": "ltx-tiny", "value": 1.0}]
    buckets = {row["le"]: row["value"] for row in only(samples, "polyreel_step_seconds_bucket")}
    assert buckets["1.0"] == buckets["+Inf"] == 1
    assert "0.5" not in buckets


async def test_the_steps_of_a_second_attempt_are_work_too(api: Api) -> None:
    job_id = await submit(api)
    assert api.records.advance(job_id, api.claim(job_id), JobStatus.RUNNING, step=3, total_steps=8)
    assert api.records.release(job_id, 1, counted=True)
    fence = api.claim(job_id)
    for step in (2, 3, 4):  # it goes on from what was saved after the second
        assert api.records.advance(job_id, fence, JobStatus.RUNNING, step=step, total_steps=8)
    assert only(await scrape(api), "polyreel_steps_total") == [{"model": "ltx-tiny", "value": 5}]


async def test_a_wait_is_that_before_the_first_claim_and_a_batch_is_one_call(api: Api) -> None:
    queue = api.app.state.services.queue
    for _ in range(3):
        queue.submit(queued())
    for job_id in api.records.open_ids():  # as if they had waited 45 s
        api.records.client.hset(f"polyreel:job:{job_id}", "created_at", redis_time(api.records.client) - 45)
    [first, *others] = claim(queue, batches=BATCHES)
    assert len(others) == 2
    assert api.records.release(first.job_id, first.fence, counted=False)
    claim(queue)
    samples = await scrape(api)
    waited = {row["le"]: row["value"] for row in only(samples, "polyreel_job_wait_seconds_bucket")}
    assert "30.0" not in waited
    assert waited["60.0"] == waited["+Inf"] == 3
    assert only(samples, "polyreel_job_wait_seconds_sum")[0]["value"] == pytest.approx(135, abs=30)
    batches = {row["le"]: row["value"] for row in only(samples, "polyreel_batch_size_bucket")}
    assert (batches["1.0"], batches["2.0"], batches["3.0"], batches["+Inf"]) == (1, 1, 2, 2)


async def test_a_call_whose_reply_is_lost_counts_once(api: Api, redis_url: str) -> None:
    with losing_replies(redis_url) as queue:
        LosesReplies.to_lose = 1
        queue.submit(queued())
        LosesReplies.to_lose = 1
        [taken] = claim(queue)
        LosesReplies.to_lose = 1
        assert queue.records.advance(taken.job_id, taken.fence, JobStatus.RUNNING, step=3, total_steps=4)
        LosesReplies.to_lose = 1
        assert queue.records.advance(taken.job_id, taken.fence, JobStatus.SUCCEEDED, timings={"store": 0.1})
        LosesReplies.to_lose = 1
        queue.records.count(LOADS, "ltx-tiny")
    samples = await scrape(api)
    assert [row["value"] for row in only(samples, "polyreel_jobs_submitted_total")] == [1]
    assert [row["value"] for row in only(samples, "polyreel_jobs_ended_total")] == [1]
    assert [row["value"] for row in only(samples, "polyreel_job_wait_seconds_count")] == [1]
    assert [row["value"] for row in only(samples, "polyreel_batch_size_count")] == [1]
    assert [row["value"] for row in only(samples, "polyreel_steps_total")] == [3]
    assert [row["value"] for row in only(samples, "polyreel_stage_seconds_count")] == [1]
    assert [row["value"] for row in only(samples, "polyreel_model_loads_total")] == [1]


async def test_every_process_answers_the_truth_also_after_a_worker_was_killed(
    make_api: Callable[..., Api], redis_url: str
) -> None:
    one, other = make_api(dialects={"modelslab": {"hold_s": 0}}), make_api(dialects={"modelslab": {"hold_s": 0}})
    first, second = await submit(one), await submit(other)
    one.claim(first, "killed")
    assert one.leases.expire_worker("killed") == {first: "queued"}  # as the keeper does when its worker is gone
    one.finish(first)
    other.fail(second)
    shown = [
        {
            name: values
            for name, values in (await scrape(api)).items()
            if not name.startswith(("polyreel_http", "polyreel_storage"))
        }
        for api in (one, other)
    ]
    assert shown[0] == shown[1]
    records = [one.records.client.hgetall(key) for key in one.records.client.scan_iter("polyreel:job:*")]
    ends = {str(row["status"]): row["value"] for row in only(shown[0], "polyreel_jobs_ended_total")}
    assert ends == {"succeeded": 1, "failed": 1}
    assert sorted(record["status"] for record in records) == ["failed", "succeeded"]
    assert sum(row["value"] for row in only(shown[0], "polyreel_jobs_submitted_total")) == len(records)
    assert shown[0]["polyreel_jobs_requeued_total"] == {frozenset(): 1}


async def test_what_an_earlier_version_counted_without_labels_is_not_lost(api: Api) -> None:
    done = await submit(api)
    api.finish(done)
    api.records.client.hincrby("polyreel:counts", "submitted", 40)
    api.records.client.hincrby("polyreel:counts", "succeeded", 38)
    samples = await scrape(api)
    assert {"dialect": "other", "model": "other", "value": 40} in only(samples, "polyreel_jobs_submitted_total")
    assert {"dialect": "other", "model": "other", "status": "succeeded", "value": 38} in only(
        samples, "polyreel_jobs_ended_total"
    )


async def test_models_that_are_not_of_the_catalogue_are_one(api: Api) -> None:
    queue = api.app.state.services.queue
    for model in ("gone|with a bar", "gone too"):
        queue.submit(queued(replace(REQUEST, model=model)))
        assert len(claim(queue, model=model)) == 1
        queue.records.count(LOADS, model)
    samples = await scrape(api)
    assert only(samples, "polyreel_jobs_submitted_total") == [{"dialect": "modelslab", "model": "other", "value": 2}]
    assert only(samples, "polyreel_model_loads_total") == [{"model": "other", "value": 2}]
    assert only(samples, "polyreel_job_wait_seconds_count") == [{"model": "other", "value": 2}]
    assert not any("gone" in str(labels) for values in samples.values() for labels in values)


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
    counts = [samples[f"polyreel_webhooks_{what}_total"][frozenset()] for what in ("delivered", "failed", "retried")]
    assert counts == [1, 1, 1]
    assert samples["polyreel_webhooks_late_seconds"][frozenset()] == pytest.approx(42, abs=30)
    assert samples["polyreel_couriers"] == {frozenset(): 1}


async def test_an_answer_from_an_equal_request_before_is_a_hit(make_api: Callable[..., Api]) -> None:
    api = make_api(dialects={"huggingface": {"wait_s": 0}})
    for hits in (0, 1, 2):
        answer = await api.http.post(
            "/models/Lightricks/LTX-Video", json={"inputs": "a cat"}, headers={"Authorization": f"Bearer {KEY}"}
        )
        assert answer.status_code == 504
        assert (await scrape(api))["polyreel_result_cache_hits_total"] == {frozenset(): hits}
    assert len(api.records.open_ids()) == 1


async def test_requests_are_counted_by_their_routes_and_never_by_their_paths(api: Api) -> None:
    job_id = await submit(api)
    for path in (f"/polyreel/v1/jobs/{job_id}", "/polyreel/v1/jobs/nothing", "/made-up/1", "/made-up/2"):
        await api.http.get(path, headers={"Authorization": f"Bearer {KEY}"})
    await api.http.request("BREW", "/made-up/3")
    samples = await scrape(api)
    counted = {
        (row["method"], row["route"], row["status"]): row["value"]
        for row in only(samples, "polyreel_http_requests_total")
    }
    assert counted == {
        ("POST", "/api/v6/video/text2video", "200"): 1,
        ("GET", "/polyreel/v1/jobs/{job_id}", "200"): 1,
        ("GET", "/polyreel/v1/jobs/{job_id}", "404"): 1,
        ("GET", "other", "404"): 2,
        ("other", "other", "404"): 1,
    }
    assert job_id not in str(samples)
    assert {row["route"]: row["value"] for row in only(samples, "polyreel_http_request_seconds_count")} == {
        "/api/v6/video/text2video": 1,
        "/polyreel/v1/jobs/{job_id}": 2,
        "other": 3,
    }


async def test_a_request_that_crashes_is_a_500_in_the_figures_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(api.app.state.services.queue, "submit", crash)
    answer = await api.http.post("/api/v6/video/text2video", json={"key": KEY, "prompt": "a", "model_id": "ltx"})
    assert answer.status_code == 500
    assert only(await scrape(api), "polyreel_http_requests_total") == [
        {"method": "POST", "route": "/api/v6/video/text2video", "status": "500", "value": 1}
    ]


async def test_the_storage_is_shown_as_this_process_finds_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.storage.folder.mkdir()
    samples = await scrape(api)
    assert samples["polyreel_storage_up"] == {frozenset(): 1}
    assert samples["polyreel_storage_free_bytes"][frozenset()] > 1e6
    monkeypatch.setattr(storage_watch, "BELIEVED_S", 0.0)
    monkeypatch.setattr(storage_watch, "PATIENCE_S", 60.0)

    def refuse(_: LocalStorage) -> None:
        raise StorageAway("The storage does not answer.")

    monkeypatch.setattr(LocalStorage, "check", refuse)
    samples = await scrape(api)
    assert samples["polyreel_storage_up"] == {frozenset(): 0}
    assert "polyreel_storage_free_bytes" not in samples


async def test_a_storage_that_hangs_is_away_and_holds_up_one_thread(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.storage.folder.mkdir()
    monkeypatch.setattr(storage_watch, "BELIEVED_S", 0.0)
    monkeypatch.setattr(storage_watch, "PATIENCE_S", 0.05)
    goes_on, calls = threading.Event(), []

    def hang(_: LocalStorage) -> None:
        calls.append(1)
        goes_on.wait(60)

    monkeypatch.setattr(LocalStorage, "check", hang)
    try:
        for _ in range(3):
            assert (await scrape(api))["polyreel_storage_up"] == {frozenset(): 0}
        assert len(calls) == 1
    finally:
        goes_on.set()
    monkeypatch.setattr(LocalStorage, "check", lambda _: None)
    monkeypatch.setattr(storage_watch, "PATIENCE_S", 60.0)
    assert (await scrape(api))["polyreel_storage_up"] == {frozenset(): 1}


async def test_metrics_tell_nothing_of_owners_keys_or_prompts(api: Api) -> None:
    await submit(api)
    text = (await api.http.get("/metrics")).text
    assert not any(word in text for word in (KEY, "alice", "secret", "prompt"))


async def test_what_is_shown_is_of_the_table_and_has_its_type(api: Api) -> None:
    api.finish(await submit(api))
    api.leases.beat("one", {"models": [], "loaded": ["ltx-tiny"], "gpu": {"memory_used_bytes": 1}})
    text = (await api.http.get("/metrics")).text
    table = {metric.name: (metric.kind, metric.help) for metric in METRICS}
    shown = {family.name: (family.type, family.documentation) for family in text_string_to_metric_families(text)}
    assert shown == {name: about for name, about in table.items() if name in shown}
    missing = set(table) - set(shown)
    assert missing == set(), "the table has metrics that nobody shows"


def test_a_bucket_that_an_earlier_version_had_counts_in_the_next_larger_one() -> None:
    series = {"wait|0.1|ltx": "1", "wait|42|ltx": "2", "wait|99999|ltx": "3", "wait|sum|ltx": "1500000"}
    found = observed(WAITED, series)
    assert found == {("ltx",): Histogram([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 3], 1.5)}
    assert WAITED.buckets[8] == 60.0
