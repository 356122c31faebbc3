"""Polyreel's own API: every dialect's jobs can be read and cancelled, by their owner alone."""

from __future__ import annotations

from typing import Any

import anyio
import httpx2
import pytest

from polyreel.job import JobStatus
from polyreel.keys import Caller
from server.dialects import Dialect, dialects
from server.services import Services
from tests.conftest import Api
from tests.core.jobs import REQUEST
from tests.dialects.calling import call, content_of, every_submit, headers_of

pytestmark = pytest.mark.anyio

UNKNOWN = {
    "type": "urn:polyreel:unknown_job",
    "title": "No such job",
    "status": 404,
    "detail": "No job has this id.",
    "code": "unknown_job",
}


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def submit(api: Api, owner: str = "alice") -> str:
    services: Services = api.app.state.services
    return (await services.submit(REQUEST, dialect="modelslab", caller=Caller(owner))).job.id


async def get(api: Api, job_id: str, key: str | None = None) -> httpx2.Response:
    return await api.http.get(f"/polyreel/v1/jobs/{job_id}", headers=auth(key or api.key))


async def cancel(api: Api, job_id: str, key: str | None = None) -> httpx2.Response:
    return await api.http.post(f"/polyreel/v1/jobs/{job_id}/cancel", headers=auth(key or api.key))


def about(answer: httpx2.Response, *fields: str) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return [answer.json()[field] for field in fields]


async def test_a_waiting_job_says_where_it_stands(api: Api) -> None:
    first, second = await submit(api), await submit(api)
    answer = (await get(api, second)).json()
    stored = api.records.get(second)
    assert stored is not None
    assert answer == {
        "id": second,
        "number": stored.number,
        "status": "queued",
        "model": "ltx-tiny",
        "dialect": "modelslab",
        "lane": "interactive",
        "stage": "",
        "progress": 0,
        "step": 0,
        "total_steps": 0,
        "position": 1,
        "eta_s": None,  # nothing was measured
        "attempts": 0,
        "resumed_from": 0,
        "created_at": stored.job.created_at,
        "started_at": None,
        "ended_at": None,
        "expires_at": None,
        "error": None,
        "request": {
            "prompts": [{"prompt": "A sunset over the ocean", "num_frames": 9}],
            "negative_prompt": "",
            "num_frames": 9,
            "height": 64,
            "width": 96,
            "fps": 8.0,
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "flow_shift": None,
            "seed": 42,
            "clip_skip": None,
            "images": [],
            "loras": [],
            "embeddings": [],
            "closed_loop": False,
            "upscale": None,
            "improved_sampling_seed": None,
            "outputs": [{"format": "gif", "fps": 8.0, "quality": "good"}],
        },
        "outputs": [],
        "timings": {},
        "receipt": {},
    }
    assert (await get(api, first)).json()["position"] == 0


async def test_a_running_job_says_how_far_it_is(api: Api) -> None:
    job_id = await submit(api)
    fence = api.claim(job_id)
    api.records.advance(
        job_id, fence, JobStatus.RUNNING, progress=40, stage="denoising", step=2, total_steps=4, resumed_from=1
    )
    fields = ("status", "progress", "stage", "step", "total_steps", "attempts", "position", "resumed_from")
    assert about(await get(api, job_id), *fields) == ["running", 40, "denoising", 2, 4, 1, None, 1]


async def test_a_finished_job_has_links_to_its_files_that_need_no_key(api: Api) -> None:
    job_id = await submit(api)
    api.finish(job_id, b"the bytes")
    [status, outputs, progress, eta_s] = about(await get(api, job_id), "status", "outputs", "progress", "eta_s")
    assert (status, progress, eta_s) == ("succeeded", 100, 0.0)
    [output] = outputs
    url = output.pop("url")
    assert url.startswith(f"http://api.test/files/out/{job_id}/{job_id}.gif?exp=")
    assert output == {
        "format": "gif",
        "media_type": "video/mp4",
        "bytes": 9,
        "height": 64,
        "width": 96,
        "num_frames": 9,
        "fps": 8.0,
        "sha256": "0" * 64,
    }
    assert (await api.http.get(url)).content == b"the bytes"


async def test_a_failed_job_says_why(api: Api) -> None:
    job_id = await submit(api)
    api.fail(job_id)
    [status, error] = about(await get(api, job_id), "status", "error")
    assert status == "failed"
    assert error == {"code": "gpu_out_of_memory", "message": "The GPU has too little memory."}


async def test_a_job_can_be_asked_for_by_its_number(api: Api) -> None:
    job_id = await submit(api)
    number = (await get(api, job_id)).json()["number"]
    assert about(await get(api, str(number)), "id") == [job_id]
    assert about(await cancel(api, str(number)), "id", "status") == [job_id, "cancelled"]


async def test_a_waiting_job_is_cancelled_at_once_and_again_is_no_error(api: Api) -> None:
    job_id = await submit(api)
    assert about(await cancel(api, job_id), "status", "position", "eta_s", "error") == ["cancelled", None, 0.0, None]
    assert about(await cancel(api, job_id), "id", "status") == [job_id, "cancelled"]
    assert api.records.open_ids() == []


async def test_a_running_job_is_cancelled_and_its_worker_learns_it(api: Api) -> None:
    job_id = await submit(api)
    fence = api.claim(job_id)
    api.records.advance(job_id, fence, JobStatus.RUNNING)
    assert about(await cancel(api, job_id), "status") == ["cancelled"]
    assert not api.records.advance(job_id, fence, JobStatus.ENCODING)


async def too_late(api: Api, job_id: str, end: str) -> None:
    if end == "succeeded":
        api.finish(job_id)
    elif end == "failed":
        api.fail(job_id)
    else:
        api.records.advance(job_id, api.claim(job_id), JobStatus.ENCODING)


@pytest.mark.parametrize(
    ("reason", "detail"),
    [
        ("succeeded", "The job has succeeded already."),
        ("failed", "The job has failed already."),
        ("finishing", "The job's file is being made already; it will be ready in a moment."),
    ],
)
async def test_too_late_is_409_and_says_why(api: Api, reason: str, detail: str) -> None:
    job_id = await submit(api)
    await too_late(api, job_id, reason)
    before = (await get(api, job_id)).json()
    answer = await cancel(api, job_id)
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:polyreel:not_cancellable",
        "title": "Too late to cancel",
        "status": 409,
        "detail": detail,
        "code": "not_cancellable",
        "reason": reason,
    }
    assert (await get(api, job_id)).json() == before


@pytest.mark.parametrize("job_id", ["7b1e0000-0000-4000-8000-000000000000", "12", "nonsense", "%2e%2e"])
async def test_an_unknown_job_is_404(api: Api, job_id: str) -> None:
    for answer in (await get(api, job_id), await cancel(api, job_id)):
        assert answer.status_code == 404
    assert (await get(api, "12")).json() == UNKNOWN


async def test_another_owners_job_reads_exactly_as_an_unknown_one(api: Api) -> None:
    job_id = await submit(api, owner="bob")
    assert ((await get(api, job_id)).json(), (await cancel(api, job_id)).json()) == (UNKNOWN, UNKNOWN)
    assert api.records.open_ids() == [job_id]
    assert about(await cancel(api, job_id, api.other_key), "status") == ["cancelled"]


async def test_without_a_key_nothing_is_told(api: Api) -> None:
    answer = await api.http.get(f"/polyreel/v1/jobs/{await submit(api)}")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json()["code"] == "missing_key"


@every_submit
async def test_a_job_of_every_dialect_is_read_by_its_owner_alone(api: Api, dialect: Dialect) -> None:
    _, [made] = await call(api, dialect, content_of(dialect, api.key), headers_of(dialect, api.key))
    assert about(await get(api, made.job.id), "dialect", "status") == [dialect.name, "succeeded"]
    assert (await get(api, made.job.id, api.other_key)).json() == UNKNOWN


@every_submit
async def test_a_job_of_every_dialect_can_be_cancelled_while_its_client_waits(api: Api, dialect: Dialect) -> None:
    """A dialect that answers when the video is there tells its client; one that polls tells it at the next poll."""
    answers: list[httpx2.Response] = []

    async def send() -> None:
        assert dialect.example is not None
        answers.append(
            await api.http.request(
                dialect.example.method,
                dialect.example.path,
                content=content_of(dialect, api.key),
                headers=headers_of(dialect, api.key),
            )
        )

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            while not api.records.open_ids():  # noqa: ASYNC110 the job arrives in Redis, which sets no event
                await anyio.sleep(0.01)
            assert about(await cancel(api, api.newest().job.id), "status") == ["cancelled"]
    [answer] = answers
    if dialect.name in ("huggingface", "universal"):
        assert (answer.status_code, answer.json()["error"]) == (500, "The job was cancelled.")
    else:
        assert answer.status_code in (200, 202)


#: How a job that was cancelled reads in the dialects that poll: (method, path, body, where, words)
POLLS: list[tuple[str, str, list[str], dict[str, Any]]] = [
    ("POST", "/api/v6/video/fetch/{id}", [], {"status": "failed", "message": "The job was cancelled.", "output": []}),
    (
        "GET",
        "/v3/async/task-result?task_id={id}",
        ["task"],
        {"status": "TASK_STATUS_FAILED", "reason": "The job was cancelled.", "eta": 0},
    ),
]


@pytest.mark.parametrize(("method", "path", "where", "words"), POLLS, ids=["modelslab", "novita"])
async def test_a_cancelled_job_reads_as_failed_where_the_vendor_has_no_word_for_it(
    api: Api, method: str, path: str, where: list[str], words: dict[str, Any]
) -> None:
    job_id = await submit(api)
    await cancel(api, job_id)
    answer = await api.http.request(method, path.format(id=job_id), json={"key": api.key}, headers=auth(api.key))
    body = answer.json()
    for key in where:
        body = body[key]
    assert answer.status_code == 200
    assert {name: body[name] for name in words} == words


async def listing(api: Api, query: str = "", key: str | None = None) -> httpx2.Response:
    return await api.http.get(f"/polyreel/v1/jobs{query}", headers=auth(key or api.key))


async def test_an_owners_jobs_are_listed_in_pages(api: Api) -> None:
    made = [await submit(api) for _ in range(3)]
    await submit(api, owner="bob")
    first = (await listing(api, "?limit=2")).json()
    assert [job["id"] for job in first["jobs"]] == [made[2], made[1]]
    assert (first["has_more"], first["next"]) == (True, str(first["jobs"][-1]["number"]))
    await submit(api)
    second = (await listing(api, f"?limit=2&after={first['next']}")).json()
    assert ([job["id"] for job in second["jobs"]], second["has_more"], second["next"]) == ([made[0]], False, None)
    assert first["jobs"][0] == (await get(api, made[2])).json()


async def test_a_list_can_be_narrowed_and_turned(api: Api) -> None:
    failed, queued, cancelled = [await submit(api) for _ in range(3)]
    api.fail(failed)
    await cancel(api, cancelled)
    for query, expected in {
        "?status=failed": [failed],
        "?status=failed,cancelled": [cancelled, failed],
        "?order=asc": [failed, queued, cancelled],
        "?model=Lightricks/LTX-Video&status=queued": [queued],
        "?model=atelier": [],
        "?unheard_of=1&limit=100": [cancelled, queued, failed],
    }.items():
        assert [job["id"] for job in (await listing(api, query)).json()["jobs"]] == expected, query


@pytest.mark.parametrize(
    ("query", "field", "detail"),
    [
        ("?limit=0", "limit", "limit must be between 1 and 100, got 0"),
        ("?limit=101", "limit", "limit must be between 1 and 100, got 101"),
        ("?limit=ten", "limit", "limit must be an integer, got 'ten'"),
        ("?limit=-1", "limit", "limit must be an integer, got '-1'"),
        (
            "?status=done",
            "status",
            "status must be one of queued, loading, running, encoding, uploading, succeeded, failed, cancelled, "
            "got 'done'",
        ),
        ("?order=up", "order", "order must be one of desc, asc, got 'up'"),
        (
            "?after=7b1e0000-0000-4000-8000-000000000000",
            "after",
            "after must be the id or the number of a job of yours; you have none with this id",
        ),
    ],
)
async def test_a_wrong_list_is_refused(api: Api, query: str, field: str, detail: str) -> None:
    answer = await listing(api, query)
    assert (answer.status_code, answer.json()["field"], answer.json()["detail"]) == (400, field, detail)


async def test_a_list_of_an_unknown_model_says_what_is_served(api: Api) -> None:
    answer = await listing(api, "?model=ltx-tin")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")


async def test_an_ended_job_is_deleted_with_its_files_and_links(api: Api) -> None:
    job_id = await submit(api)
    api.finish(job_id)
    shown = (await get(api, job_id)).json()
    url = shown["outputs"][0]["url"]
    assert (await api.http.get(url)).status_code == 200
    for key, expected in ((api.other_key, 404), (api.key, 200), (api.key, 404)):
        answer = await api.http.delete(f"/polyreel/v1/jobs/{job_id}", headers=auth(key))
        assert answer.status_code == expected
        if expected == 200:
            assert answer.json() == {"id": job_id, "number": shown["number"], "deleted": True, "status": "succeeded"}
        else:
            assert answer.json() == UNKNOWN
    assert (await api.http.get(url)).status_code == 404
    assert (await get(api, job_id)).json() == UNKNOWN
    assert (await get(api, str(shown["number"]))).json() == UNKNOWN


async def test_an_unfinished_job_that_is_deleted_is_cancelled_and_stays(api: Api) -> None:
    job_id = await submit(api)
    for deleted, then in ((False, 200), (True, 404)):
        answer = await api.http.delete(f"/polyreel/v1/jobs/{job_id}", headers=auth(api.key))
        assert (answer.status_code, answer.json()["deleted"], answer.json()["status"]) == (200, deleted, "cancelled")
        assert (await get(api, job_id)).status_code == then


async def test_the_same_request_after_a_deletion_is_made_anew(api: Api) -> None:
    """Hugging Face's dialect answers the same request from its cache, until the job is deleted."""
    dialect = next(d for d in dialects().values() if d.name == "huggingface")
    content, headers = content_of(dialect, api.key), headers_of(dialect, api.key)
    _, [made] = await call(api, dialect, content, headers)
    _, cached = await call(api, dialect, content, headers)
    assert cached == []
    await api.http.delete(f"/polyreel/v1/jobs/{made.job.id}", headers=auth(api.key))
    _, [again] = await call(api, dialect, content, headers)
    assert again.job.id != made.job.id
