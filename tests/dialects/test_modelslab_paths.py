"""ModelsLab's other paths: the enterprise server, v7, the count of requests, and what is not there."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from server.dialects.modelslab import DIALECT
from tests.conftest import Api
from tests.dialects.modelslab import SUBMIT, body, fetch, submit
from tests.server.pictures import png

pytestmark = pytest.mark.anyio

V6, ENTERPRISE, V7 = "/api/v6/video", "/api/v1/enterprise/video", "/api/v7/video-fusion"
COUNT = "/api/v6/processing/request_count"


@pytest.mark.parametrize(
    ("folder", "submits"),
    [
        (V6, ["text2video", "img2video"]),
        (ENTERPRISE, ["text2video", "img2video"]),
        (V7, ["text-to-video", "image-to-video"]),
    ],
)
async def test_every_path_submits_and_fetches_beside_itself(api: Api, folder: str, submits: list[str]) -> None:
    picture = base64.b64encode(png(8, 8)).decode()
    for path in submits:
        submitted = await submit(api, f"{folder}/{path}", init_image=picture)
        assert submitted["fetch_result"] == f"http://api.test{folder}/fetch/{submitted['id']}"
        api.finish(api.newest().job.id)
        fetched = await api.http.post(submitted["fetch_result"], json={"key": api.key})
        assert fetched.json()["output"] == submitted["future_links"]


@pytest.mark.parametrize(
    ("path", "output_type"),
    [(f"{V6}/text2video", "gif"), (f"{ENTERPRISE}/text2video", "gif"), (f"{V7}/text-to-video", "mp4")],
)
async def test_v7_makes_mp4_when_nobody_asks_as_its_cli_calls_every_file(api: Api, path: str, output_type: str) -> None:
    assert (await submit(api, path))["meta"]["output_type"] == output_type
    assert (await submit(api, path, output_type="gif"))["meta"]["output_type"] == "gif"


@pytest.mark.parametrize(("path", "is_listed"), [(f"{V6}/text2video", True), (f"{V7}/text-to-video", False)])
async def test_a_success_at_submit_names_its_file_twice_but_to_the_cli_which_would_save_both(
    make_api: Callable[..., Api], path: str, is_listed: bool
) -> None:
    api = make_api(dialects={"modelslab": {"hold_s": 10}, "universal": {"endpoint_model": "ltx"}})
    headers = {"Idempotency-Key": "one"}
    first = await api.http.post(path, json=body(api, instant_response=True), headers=headers)
    api.finish(api.newest().job.id)
    again = await api.http.post(path, json=body(api, instant_response=True), headers=headers)

    assert first.json()["status"] == "processing"
    answer = again.json()
    assert (answer["status"], answer["eta"]) == ("success", 0)
    assert answer.get("future_links") == (answer["output"] if is_listed else None)


# Counts


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_the_count_is_of_the_callers_unfinished_jobs(api: Api, method: str) -> None:
    async def count(key: str) -> dict[str, Any]:
        response = await api.http.request(method, COUNT, json={"key": key})
        assert response.status_code == 200
        return dict(response.json())

    assert await count(api.key) == {
        "status": "success",
        "processing_count": 0,
        "message": "Current processing request count retrieved successfully",
    }
    for _ in range(2):
        await submit(api)
    assert (await count(api.key))["processing_count"] == 2
    assert (await count(api.other_key))["processing_count"] == 0
    api.finish(api.newest().job.id)
    assert (await count(api.key))["processing_count"] == 1


@pytest.mark.parametrize("header", [{"key": "{key}"}, {"Authorization": "Bearer {key}"}])
async def test_a_get_without_a_body_has_its_key_in_a_header(api: Api, header: dict[str, str]) -> None:
    headers = {name: value.format(key=api.key) for name, value in header.items()}
    assert (await api.http.get(COUNT, headers=headers)).json()["processing_count"] == 0


@pytest.mark.parametrize("path", [COUNT, f"{ENTERPRISE}/system_details"])
async def test_counts_are_told_to_nobody_without_a_key(api: Api, path: str) -> None:
    response = await api.http.post(path, json={})
    assert (response.status_code, response.json()) == (401, {"status": "error", "message": "API key required"})


@pytest.mark.parametrize("path", [f"{V6}/system_details", f"{ENTERPRISE}/system_details"])
async def test_system_details_are_the_loaded_models_and_the_length_of_the_queue(api: Api, path: str) -> None:
    async def details() -> dict[str, Any]:
        return dict((await api.http.post(path, json={"key": api.key})).json())

    assert await details() == {"model_count": 0, "queue_time": 0, "status": "ok"}
    api.leases.beat("one", {"models": ["atelier", "ltx-tiny"], "loaded": ["atelier", "ltx-tiny"]})
    api.leases.beat("two", {"models": ["atelier"], "loaded": ["atelier"]})
    await submit(api)
    assert await details() == {"model_count": 2, "queue_time": 10, "status": "ok"}


# What is not there


@pytest.mark.parametrize(
    "path",
    [
        f"{V6}/text2video_ultra",
        f"{V6}/img2video_ultra",
        f"{V6}/video2video",
        f"{V6}/watermark_remover",
        f"{V6}/base64_to_url",
        f"{V6}/scene_maker",
        f"{V6}/open_sora",
        f"{ENTERPRISE}/video2video",
        f"{ENTERPRISE}/restart_server",
        f"{ENTERPRISE}/update",
        f"{ENTERPRISE}/update_server",
        f"{ENTERPRISE}/clear_cache",
        f"{ENTERPRISE}/clear_queue",
        f"{V6}/restart_server",
        "/api/v1/enterprise/ultra_video/text2video",
        f"{V7}/video-to-video",
        f"{V7}/lip-sync",
        "/api/v6/images/text2img",
    ],
)
async def test_a_path_that_is_not_served_is_a_404_in_the_vendors_form(api: Api, path: str) -> None:
    await submit(api)
    response = await api.http.post(path, json=body(api))
    assert response.status_code == 404
    assert response.json() == {"status": "error", "message": f"There is nothing at POST {path}."}
    assert len(api.records.open_ids()) == 1


# Files


async def test_links_answer_head_and_range_without_a_key(api: Api) -> None:
    submitted = await submit(api, output_type="mp4")
    link = submitted["future_links"][0]
    assert (await api.http.head(link)).status_code == 404
    api.finish(api.newest().job.id, b"0123456789")

    head = await api.http.head(link)
    assert (head.status_code, head.headers["content-type"], head.headers["content-length"]) == (200, "video/mp4", "10")
    assert head.content == b""
    part = await api.http.get(link, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, b"2345")
    assert part.headers["content-range"] == "bytes 2-5/10"


async def test_a_gif_is_served_as_one(api: Api) -> None:
    submitted = await submit(api)
    api.finish(api.newest().job.id)
    result = await fetch(api, submitted["id"])
    assert (await api.http.head(result["output"][0])).headers["content-type"] == "image/gif"


# OpenAPI


async def test_the_openapi_document_says_what_every_route_reads_answers_and_how_it_refuses() -> None:
    app = FastAPI()
    app.include_router(DIALECT.router)
    routes = {
        (path, method): operation
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    assert sorted(routes) == [
        (f"{ENTERPRISE}/fetch/{{job_id}}", "post"),
        (f"{ENTERPRISE}/img2video", "post"),
        (f"{ENTERPRISE}/system_details", "post"),
        (f"{ENTERPRISE}/text2video", "post"),
        (COUNT, "get"),
        (COUNT, "post"),
        (f"{V6}/fetch/{{job_id}}", "post"),
        (f"{V6}/img2video", "post"),
        (f"{V6}/system_details", "post"),
        (f"{V6}/text2video", "post"),
        (f"{V7}/fetch/{{job_id}}", "post"),
        (f"{V7}/image-to-video", "post"),
        (f"{V7}/text-to-video", "post"),
    ]
    for (_, method), operation in routes.items():
        assert operation["security"] == [{"bearer": []}, {"key": []}]
        assert set(operation["responses"]) >= {"200", "4XX", "5XX"}
        refusal = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
        assert set(refusal["required"]) == {"status", "message"}
        assert ("requestBody" in operation) is (method == "post")
    sent = routes[SUBMIT, "post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"key", "prompt", "model_id", "webhook", "track_id", "upscale_height"} <= set(sent)


async def test_a_browser_on_another_origin_may_call(make_api: Callable[..., Api]) -> None:
    api = make_api(cors_origins=["*"], dialects={"modelslab": {"hold_s": 0}, "universal": {"endpoint_model": "ltx"}})
    asked: httpx2.Response = await api.http.options(
        SUBMIT,
        headers={
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "*")
