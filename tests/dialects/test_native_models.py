"""What is served, as our own clients see it, and what administrators tell workers of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from polyreel.commands import Commands
from polyreel.keys import ApiKeys, load_keys
from polyreel.settings import Settings
from tests.conftest import Api

pytestmark = pytest.mark.anyio


@pytest.fixture
def keys(settings: Settings) -> ApiKeys:
    """Alice administers, bob does not."""
    return load_keys(settings.model_copy(update={"admins": ("alice",)}))[0]


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def say(api: Api, name: str, **about: Any) -> None:
    """Let a live worker say something of itself."""
    said = {"device": "cuda:0", "memory_bytes": 80_000_000_000, "models": [], "loaded": [], "jobs": [], **about}
    api.records.client.hset("polyreel:residents", name, json.dumps({"models": said["loaded"], "until": 4e9}))
    api.records.client.set(f"polyreel:worker:{name}", json.dumps(said))


async def models(api: Api, key: str | None = None) -> dict[str, dict[str, Any]]:
    answer = await api.http.get("/polyreel/v1/models", headers=auth(key or api.key))
    assert answer.status_code == 200, answer.text
    return {model["name"]: model for model in answer.json()["models"]}


async def tell(api: Api, model: str, action: str, key: str | None = None, **body: Any) -> httpx2.Response:
    path = f"/polyreel/v1/models/{model}/{action}"
    return await api.http.post(path, headers=auth(key or api.key), json=body or None)


async def test_every_entry_is_listed_with_what_it_can_do_and_how_it_is_called(api: Api) -> None:
    found = await models(api)
    assert list(found) == ["atelier", "ltx-tiny", "animatediff-tiny"]
    assert {name: found["animatediff-tiny"][name] for name in found["animatediff-tiny"] if name != "names"} == {
        "name": "animatediff-tiny",
        "family": "animatediff",
        "licence": "",
        "tasks": [
            "t2v",
            "i2v",
            "first_last",
            "keyframes",
            "upscale",
            "prompt_travel",
            "closed_loop",
            "embeddings",
            "improved_sampling",
        ],
        "runs_pictures": None,
        "limits": {"num_frames": 128, "side": 1024, "num_inference_steps": 50, "pixels": 134217728},
        "defaults": {
            "num_frames": 16,
            "height": 256,
            "width": 256,
            "fps": 8.0,
            "num_inference_steps": 20,
            "guidance_scale": 7.5,
        },
        "state": "unavailable",
        "reason": "No worker is running.",
        "workers": 0,
        "pinned": False,
        "allowed": True,
        "loras": [{"name": "style-tiny", "names": {"novita": ["GoodHands-beta2_39807"]}, "token": ""}],
        "embeddings": [{"name": "badhandv4-tiny", "names": {"novita": ["badhandv4_16755"]}, "token": "badhandv4"}],
    }
    assert found["animatediff-tiny"]["names"]["novita"] == ["darkSushiMixMix_225D_64380.safetensors"]
    assert found["ltx-tiny"]["loras"] == []


async def test_a_model_is_loaded_where_one_worker_has_it_and_ready_where_one_would_load_it(api: Api) -> None:
    say(api, "one", models=["atelier", "ltx-tiny"], loaded=["atelier"])
    say(api, "two", models=["ltx-tiny"])
    found = await models(api)
    assert {name: (m["state"], m["workers"], m["reason"]) for name, m in found.items()} == {
        "atelier": ("loaded", 1, ""),
        "ltx-tiny": ("ready", 2, ""),
        "animatediff-tiny": ("unavailable", 0, "Every worker that serves it is stopping."),
    }


async def test_why_a_model_cannot_run_is_for_administrators(api: Api) -> None:
    say(api, "one", models=["atelier"], unavailable={"ltx-tiny": "/weights/ltx has no model_index.json."})
    assert (await models(api))["ltx-tiny"]["reason"] == "/weights/ltx has no model_index.json."
    others = await models(api, api.other_key)
    assert others["ltx-tiny"]["reason"] == "No worker can load it; its operator sees why."


async def test_a_pin_counts_instead_of_what_the_catalogue_says(api: Api) -> None:
    say(api, "one", models=["atelier"])
    assert (await tell(api, "atelier", "pin")).json() == {
        "id": "pin:atelier",
        "action": "pin",
        "model": "atelier",
        "workers": ["one"],
    }
    assert (await models(api))["atelier"]["pinned"] is True
    await tell(api, "atelier", "unpin")
    assert (await models(api))["atelier"]["pinned"] is False


async def test_a_worker_is_told_to_load_a_model_by_any_of_its_names(api: Api) -> None:
    say(api, "one", models=["ltx-tiny"])
    say(api, "two", models=["ltx-tiny"])
    everybody = await tell(api, "Lightricks/LTX-Video", "load")
    assert (everybody.status_code, everybody.json()["model"]) == (202, "ltx-tiny")
    assert sorted(everybody.json()["workers"]) == ["one", "two"]
    assert (await tell(api, "ltx-tiny", "unload", worker="two")).json()["workers"] == ["two"]
    heard = api.records.client.zrange("polyreel:commands:two", 0, -1)
    assert [json.loads(text)["action"] for text in heard] == ["load", "unload"]


@pytest.mark.parametrize(
    ("model", "action", "body", "status", "code", "detail"),
    [
        ("ltx-tiny", "load", {"worker": "three"}, 409, "no_worker", "No live worker has this name: three."),
        ("ltx-tiny", "pin", {"worker": "one"}, 400, "invalid_request", "worker: pin is for all workers; leave it out"),
        ("ltx-tiny", "load", {"worker": 7}, 400, "invalid_request", "worker must be a string, got 7"),
        (
            "ltx-tin",
            "load",
            {},
            404,
            "unknown_model",
            "Model ltx-tin is not served here. Did you mean ltx-tiny? Served: animatediff-tiny, atelier, ltx-tiny.",
        ),
        (
            "ltx-tiny",
            "explode",
            {},
            404,
            "unknown_route",
            "There is nothing at 'explode' of a model; there is load, unload, pin, unpin.",
        ),
    ],
)
async def test_what_cannot_be_told_is_refused(
    api: Api, model: str, action: str, body: dict[str, Any], status: int, code: str, detail: str
) -> None:
    say(api, "one", models=["ltx-tiny"])
    answer = await tell(api, model, action, **body)
    assert (answer.status_code, answer.json()["code"], answer.json()["detail"]) == (status, code, detail)


async def test_nobody_hears_where_no_worker_lives_but_a_pin_is_kept(api: Api) -> None:
    answer = await tell(api, "ltx-tiny", "load")
    assert (answer.status_code, answer.json()["detail"]) == (409, "No worker is live.")
    assert (await tell(api, "ltx-tiny", "pin")).json()["workers"] == []
    assert (await models(api))["ltx-tiny"]["pinned"] is True


@pytest.mark.parametrize("action", ["load", "unload", "pin", "unpin"])
async def test_only_an_administrator_may_tell_workers_anything(
    api: Api, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RELIABILITY.md, A6."""
    given: list[object] = []
    monkeypatch.setattr(Commands, "give", lambda *args: given.append(args))
    refused = await tell(api, "ltx-tiny", action, api.other_key)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
    assert (await tell(api, "ltx-tiny", action, "mallory-key-9876543210")).status_code == 401
    assert given == []


async def test_who_may_only_read_makes_and_ends_no_job(api: Api, keys: ApiKeys) -> None:
    """RELIABILITY.md, A6."""
    callers = api.app.state.services.callers
    readers = {digest: replace(caller, scopes=frozenset({"read"})) for digest, caller in callers.keys.callers.items()}
    object.__setattr__(callers, "keys", replace(callers.keys, callers=readers))
    job = "/polyreel/v1/jobs/7b1e0000-0000-4000-8000-000000000000"
    for method, path in (("POST", "/polyreel/v1/jobs"), ("POST", f"{job}/cancel"), ("DELETE", job)):
        answer = await api.http.request(method, path, headers=auth(api.key), json={})
        assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed")
    assert (await api.http.get("/polyreel/v1/jobs", headers=auth(api.key))).status_code == 200
