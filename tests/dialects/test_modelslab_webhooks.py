"""ModelsLab's webhooks: which jobs have one, and what it is told. That it is delivered, is the courier's business."""

from __future__ import annotations

from typing import Any

import pytest

from polyreel.job import JobStatus
from server.dialects.modelslab import DIALECT, ModelsLabSettings
from tests.conftest import Api
from tests.dialects.modelslab import SUBMIT, body, submit

pytestmark = pytest.mark.anyio

URL = "https://your-server.example/webhook/modelslab"


def told(api: Api, job_id: str) -> dict[str, Any]:
    """Return the body that the end of a job is told with."""
    stored = api.records.get(job_id)
    assert stored is not None
    assert DIALECT.webhook is not None

    def link(key: str, expires_at: float) -> str:
        assert expires_at == stored.job.created_at + 3600
        return f"https://links.example/{key}"

    return DIALECT.webhook(stored, link, 3600, ModelsLabSettings())


async def test_a_webhook_is_kept_with_its_job_and_told_in_meta(api: Api) -> None:
    answer = await submit(api, webhook=URL, track_id="video_001")
    assert api.newest().job.webhook == URL
    assert (answer["meta"]["webhook"], answer["meta"]["track_id"]) == (URL, "video_001")


@pytest.mark.parametrize("webhook", [None, ""])
async def test_null_and_nothing_are_no_webhook(api: Api, webhook: str | None) -> None:
    answer = await submit(api, webhook=webhook)
    assert (api.newest().job.webhook, answer["meta"]["webhook"]) == ("", None)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://your-server.example/hook", "webhook must start with https://, got http://"),
        (
            "https://169.254.169.254/latest",
            "webhook must lead to a public address; the operator of this server can allow others (webhook_allow)",
        ),
        (
            "your-server.example/hook",
            "webhook must be an absolute URL of at most 4096 characters, without spaces or backslashes",
        ),
    ],
)
async def test_a_webhook_that_will_never_be_called_is_refused_at_submit(api: Api, url: str, message: str) -> None:
    response = await api.http.post(SUBMIT, json=body(api, webhook=url))
    assert (response.status_code, response.json()) == (400, {"status": "error", "message": message})
    assert api.records.open_ids() == []


@pytest.mark.parametrize("track_id", ["video_001", 17, None])
async def test_a_success_is_told_as_documented(api: Api, track_id: object) -> None:
    answer = await submit(api, webhook=URL, track_id=track_id, seed=7, output_type="mp4")
    job = api.finish(api.newest().job.id)
    body = told(api, job.id)
    assert body.pop("generationTime") == round(job.ended_at - job.started_at, 2)
    assert body == {
        "status": "success",
        "id": answer["id"],
        "output": [f"https://links.example/out/{job.id}/{job.id}.mp4"],
        "track_id": track_id,
        "meta": answer["meta"],
    }


async def test_a_failure_is_told_with_its_reason(api: Api) -> None:
    answer = await submit(api, webhook=URL, track_id="video_001")
    job_id = api.newest().job.id
    api.fail(job_id, "Processing failed: the picture is damaged.")
    assert told(api, job_id) == {
        "status": "failed",
        "id": answer["id"],
        "message": "Processing failed: the picture is damaged.",
        "track_id": "video_001",
    }


async def test_a_cancelled_job_is_told_as_failed(api: Api) -> None:
    answer = await submit(api, webhook=URL, track_id=17)
    job_id = api.newest().job.id
    api.records.advance(job_id, None, JobStatus.CANCELLED)
    assert told(api, job_id) == {
        "status": "failed",
        "id": answer["id"],
        "message": "The job was cancelled.",
        "track_id": 17,
    }
