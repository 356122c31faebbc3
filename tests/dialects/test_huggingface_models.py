"""What Hugging Face's clients ask about a model before they use it, and what browsers ask."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polyreel.settings import Settings
from tests.conftest import Api
from tests.dialects.huggingface import LTX, ask, auth, beat, generate

pytestmark = pytest.mark.anyio

STATUS = "/status/Lightricks/LTX-Video"


@pytest.mark.parametrize(
    "path", [LTX, f"{LTX}/", f"{LTX}/info", f"/hf-inference{LTX}", "/models/Lightricks%2FLTX-Video"]
)
async def test_a_model_is_described_to_who_has_a_key(api: Api, path: str) -> None:
    answer = await api.http.get(path, headers=auth(api.key))
    assert answer.json() == {"model_id": "Lightricks/LTX-Video", "pipeline_tag": "text-to-video", "family": "ltx"}
    assert (await api.http.get(path)).status_code == 401


async def test_a_model_that_is_not_served_is_404_and_names_what_is(api: Api) -> None:
    for path in ("/models/tencent/HunyuanVideo", "/status/tencent/HunyuanVideo"):
        answer = await api.http.get(path, headers=auth(api.key))
        assert (answer.status_code, answer.json()) == (
            404,
            {
                "error": "Model tencent/HunyuanVideo is not served here. Served: "
                "AdamLucek/Wan2.1-T2V-14B-OldBookIllustrations, Lightricks/LTX-Video, Wan-AI/Wan2.1-I2V-14B-480P, "
                "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers, Wan-AI/Wan2.1-I2V-14B-720P, "
                "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers, Wan-AI/Wan2.1-T2V-1.3B, Wan-AI/Wan2.1-T2V-1.3B-Diffusers, "
                "Wan-AI/Wan2.1-T2V-14B, Wan-AI/Wan2.1-T2V-14B-Diffusers, Wan-AI/Wan2.2-I2V-A14B, "
                "Wan-AI/Wan2.2-I2V-A14B-Diffusers, Wan-AI/Wan2.2-T2V-A14B, Wan-AI/Wan2.2-T2V-A14B-Diffusers, "
                "Wan-AI/Wan2.2-TI2V-5B, Wan-AI/Wan2.2-TI2V-5B-Diffusers."
            },
        )


async def test_the_clients_health_check_is_answered_below_a_models_url(api: Api) -> None:
    answer = await api.http.get(f"{LTX}/health", headers=auth(api.key))
    assert (answer.status_code, answer.text) == (200, "Ok")
    assert (await api.http.get("/models/no/such/health", headers=auth(api.key))).status_code == 404


@pytest.mark.parametrize("path", [STATUS, f"{STATUS}/", f"/hf-inference{STATUS}"])
async def test_a_model_in_a_workers_memory_is_loaded(api: Api, path: str) -> None:
    beat(api, "ltx-tiny", device="cuda:0")
    answer = await api.http.get(path, headers=auth(api.key))
    assert answer.json() == {"loaded": True, "state": "Loaded", "compute_type": "gpu", "framework": "diffusers"}
    assert (await api.http.get(path)).status_code == 401


async def test_a_model_that_a_worker_could_load_is_loadable(api: Api) -> None:
    beat(api, "atelier")
    answer = await api.http.get(STATUS, headers=auth(api.key))
    assert answer.json() == {"loaded": False, "state": "Loadable", "compute_type": "cpu", "framework": "diffusers"}


async def test_a_model_that_no_worker_can_run_is_too_big(api: Api) -> None:
    api.leases.beat("w", {"device": "cpu", "models": ["atelier"], "loaded": [], "unavailable": {"ltx-tiny": "weights"}})
    answer = await api.http.get(STATUS, headers=auth(api.key))
    assert (answer.json()["loaded"], answer.json()["state"]) == (False, "TooBig")


async def test_without_a_worker_every_model_is_loadable_on_the_device_of_the_profile(api: Api) -> None:
    answer = await api.http.get(STATUS, headers=auth(api.key))
    assert answer.json() == {"loaded": False, "state": "Loadable", "compute_type": "cpu", "framework": "diffusers"}


async def test_a_provider_client_learns_without_a_key_that_novitas_dialect_offers_the_model(api: Api) -> None:
    answer = await api.http.get("/api/models/Wan-AI/Wan2.1-T2V-14B?expand=inferenceProviderMapping")
    assert answer.json() == {
        "id": "Wan-AI/Wan2.1-T2V-14B",
        "pipeline_tag": "text-to-video",
        "inferenceProviderMapping": {
            "novita": {"status": "live", "providerId": "Wan-AI/Wan2.1-T2V-14B", "task": "text-to-video"}
        },
    }


async def test_without_a_key_no_other_model_is_named(api: Api) -> None:
    answer = await api.http.get("/api/models/tencent/HunyuanVideo")
    assert (answer.status_code, answer.json()) == (404, {"error": "Model tencent/HunyuanVideo is not served here."})


async def test_a_model_of_pictures_alone_says_so(make_api: Callable[..., Api], settings: Settings) -> None:
    ltx = settings.models["ltx-tiny"].model_copy(update={"tasks": ("i2v",)})
    api = make_api(models={**settings.models, "ltx-tiny": ltx}, dialects={})
    answer = await api.http.get(LTX, headers=auth(api.key))
    assert answer.json()["pipeline_tag"] == "image-to-video"


# Browsers


@pytest.mark.parametrize("path", [LTX, "/"])
async def test_a_browser_may_send_every_header_of_the_contract(api: Api, path: str) -> None:
    """What a page at another origin asks before `fetch` with a key: WHATWG Fetch, CORS-preflight fetch."""
    asked = "authorization,content-type,x-scale-up-timeout,x-use-cache,x-wait-for-model"
    answer = await api.http.options(
        path,
        headers={
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": asked,
        },
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in ("*", "https://app.example")
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert set(asked.split(",")) <= allowed


async def test_a_browser_may_read_the_answer_and_its_headers(api: Api) -> None:
    answer = await generate(api, headers={"Origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] in ("*", "https://app.example")
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert {"x-compute-type", "x-compute-time", "x-request-id"} <= exposed


async def test_a_browser_may_read_an_error(api: Api) -> None:
    answer = await ask(api, inputs=" ", headers={"Origin": "https://app.example"})
    assert answer.status_code == 400
    assert answer.headers["access-control-allow-origin"] in ("*", "https://app.example")
