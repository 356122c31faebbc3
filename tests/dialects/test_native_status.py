"""How the server is doing, what a key has used, and where everything is."""

from __future__ import annotations

from typing import Any

import pytest

import polyreel
from polyreel.keys import ApiKeys, Caller, load_keys
from polyreel.settings import Settings
from tests.conftest import Api
from tests.core.jobs import REQUEST
from tests.dialects.test_native_models import say

pytestmark = pytest.mark.anyio


@pytest.fixture
def keys(settings: Settings) -> ApiKeys:
    """Alice administers, bob does not."""
    return load_keys(settings.model_copy(update={"admins": ("alice",)}))[0]


async def get(api: Api, name: str, key: str | None = None) -> Any:
    answer = await api.http.get(f"/polyreel/v1/{name}", headers={"Authorization": f"Bearer {key or api.key}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def submit(api: Api, owner: str) -> str:
    stored = await api.app.state.services.submit(REQUEST, dialect="native", caller=Caller(owner))
    return str(stored.job.id)


async def test_the_queue_is_told_by_model_and_nobody_elses_job_by_name(api: Api) -> None:
    first, _ = await submit(api, "bob"), await submit(api, "alice")
    api.claim(first)
    answer = await get(api, "status")
    assert answer["queue"] == {
        "unfinished": 2,
        "running": 1,
        "most": 1000,
        "models": [{"model": "ltx-tiny", "waiting": 1}],
    }
    assert answer["version"] == polyreel.__version__
    assert answer["uptime_s"] > 0
    assert first not in str(answer)


async def test_what_a_worker_was_told_and_cannot_do_is_for_administrators(api: Api) -> None:
    told = {"id": "c1", "action": "load", "model": "ltx-tiny", "state": "done", "reason": ""}
    say(
        api,
        "one",
        models=["ltx-tiny"],
        loaded=["ltx-tiny"],
        loading="atelier",
        pinned=["ltx-tiny"],
        jobs=["7b1e0000-0000-4000-8000-000000000000"],
        commands=[told],
        unavailable={"atelier": "/weights/wan is missing."},
    )
    expected = {
        "name": "one",
        "device": "cuda:0",
        "memory_bytes": 80_000_000_000,
        "gpu": None,
        "jobs_per_minute": 0.0,
        "models": ["ltx-tiny"],
        "loaded": ["ltx-tiny"],
        "loading": "atelier",
        "pinned": ["ltx-tiny"],
        "busy": 1,
        "commands": [told],
        "unavailable": {"atelier": "/weights/wan is missing."},
    }
    assert (await get(api, "status"))["workers"] == [expected]
    assert (await get(api, "status", api.other_key))["workers"] == [{**expected, "commands": [], "unavailable": {}}]


async def test_what_a_gpu_does_is_shown_to_everybody(api: Api) -> None:
    gpu = {
        "name": "NVIDIA H200",
        "memory_total_bytes": 150_754_820_096,
        "memory_used_bytes": 12_000_000_000,
        "utilization_percent": 97,
        "temperature_c": 64,
        "power_w": None,
    }
    say(api, "one", gpu={**gpu, "fan_percent": 30}, jobs_per_minute=1.5)
    [worker] = (await get(api, "status", api.other_key))["workers"]
    assert (worker["gpu"], worker["jobs_per_minute"]) == (gpu, 1.5)


async def test_a_key_learns_what_it_has_used_and_may_do(api: Api) -> None:
    first, _ = await submit(api, "bob"), await submit(api, "bob")
    api.claim(first)
    answer = await get(api, "usage", api.other_key)
    assert 0 < answer.pop("resets_in_s") <= 86_400
    assert len(answer.pop("day")) == len("2026-11-21")
    assert answer == {
        "owner": "bob",
        "scopes": ["read", "submit"],
        "submits": 2,
        "gpu_seconds": 0.0,
        "reserved_seconds": 0.0,
        "queued": 1,
        "running": 1,
        "limits": {
            "requests_per_minute": None,
            "max_queued": None,
            "max_running": None,
            "gpu_seconds_per_day": None,
            "models": [],
            "retention_s": None,
        },
    }
    assert (await get(api, "usage"))["scopes"] == ["admin", "read", "submit"]


async def test_where_everything_is_is_told_without_a_key(api: Api) -> None:
    answer = (await api.http.get("/polyreel/v1")).json()
    assert (answer["name"], answer["version"]) == ("Polyreel", polyreel.__version__)
    assert answer["links"]["jobs"] == "http://api.test/polyreel/v1/jobs"
    assert {"name": "novita", "prefixes": ["/v3/"]} in answer["dialects"]
    assert {"name": "mp4", "media_type": "video/mp4", "extension": "mp4", "kind": "video"} in answer["formats"]


@pytest.mark.parametrize("name", ["status", "usage", "models", "jobs"])
async def test_the_rest_is_told_to_nobody_without_a_key(api: Api, name: str) -> None:
    answer = await api.http.get(f"/polyreel/v1/{name}")
    assert (answer.status_code, answer.json()["code"]) == (401, "missing_key")
