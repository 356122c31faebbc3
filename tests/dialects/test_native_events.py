"""Following a job: what is told and when, what a client that connects again is told, and what many cost."""

from __future__ import annotations

import asyncio
import base64
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import psutil
import pytest

from polyreel.errors import QueueUnavailable
from polyreel.job import JobStatus
from polyreel.keys import Caller
from polyreel.previews import Preview, preview_text
from server import watching
from server.dialects.native import events
from server.services import Services
from tests.conftest import Api
from tests.core.jobs import REQUEST
from tests.dialects.streams import Stream, streaming

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_LOOK_S", 0.02)
    monkeypatch.setattr(watching, "_AWAY_S", 0.05)
    monkeypatch.setattr(events, "_CHECK_S", 0.05)


@pytest.fixture
def shared(api: Api) -> Services:
    return api.app.state.services


async def submit(shared: Services, owner: str = "alice") -> str:
    return (await shared.submit(REQUEST, dialect="modelslab", caller=Caller(owner))).job.id


def path_of(job_id: str) -> str:
    return f"/polyreel/v1/jobs/{job_id}/events"


@asynccontextmanager
async def following(api: Api, job_id: str, **headers: str) -> AsyncIterator[Stream]:
    async with streaming(api, path_of(job_id), **headers) as stream:
        yield stream


async def settled(shared: Services) -> int:
    """Return how many watches run once those that have nobody left have ended."""
    for _ in range(100):
        if len(shared.watches) == 0:
            break
        await anyio.sleep(0.01)
    return len(shared.watches)


async def test_a_job_is_told_of_from_its_place_in_the_line_to_its_end(api: Api, shared: Services) -> None:
    first, job_id = await submit(shared), await submit(shared)
    async with following(api, job_id) as stream:
        told = await stream.until("progress")
        assert told.data == {
            "id": job_id,
            "status": "queued",
            "stage": "",
            "step": 0,
            "total_steps": 0,
            "progress": 0,
            "position": 1,
            "eta_s": None,
            "preview": None,
        }
        api.records.cancel(first)
        fence = api.claim(job_id)
        api.records.advance(job_id, fence, JobStatus.RUNNING, progress=40, stage="denoising", step=2, total_steps=4)
        while stream.events[-1].data["status"] != "running":  # noqa: ASYNC110
            await anyio.sleep(0.01)
        assert [stream.events[-1].data[name] for name in ("progress", "stage", "step", "total_steps", "position")] == [
            40, "denoising", 2, 4, None,
        ]  # fmt: skip
        api.records.advance(
            job_id, fence, JobStatus.FAILED, error_code="gpu_out_of_memory", error_message="Too little."
        )
        end = await stream.until("end")
        await stream.over()
    whole = await api.http.get(f"/polyreel/v1/jobs/{job_id}", headers={"Authorization": f"Bearer {api.key}"})
    assert end.data == whole.json()
    assert end.data["error"] == {"code": "gpu_out_of_memory", "message": "Too little."}
    assert stream.names()[-1] == "end"
    assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert (stream.headers["cache-control"], stream.headers["x-accel-buffering"]) == ("no-store", "no")
    assert stream.text.startswith("retry: 1000\n\n")
    assert await settled(shared) == 0


async def test_the_end_of_a_succeeded_job_leads_to_its_file(api: Api, shared: Services) -> None:
    job_id = await submit(shared)
    api.finish(job_id, b"the bytes")
    async with following(api, job_id) as stream:
        end = await stream.until("end")
    assert stream.names() == ["end"]
    assert (await api.http.get(end.data["outputs"][0]["url"])).content == b"the bytes"


async def test_a_new_picture_is_told_once(api: Api, shared: Services) -> None:
    job_id = await submit(shared)
    fence = api.claim(job_id)
    api.records.advance(job_id, fence, JobStatus.RUNNING, step=1, total_steps=4)
    async with following(api, job_id) as stream:
        await stream.until("progress")
        for step, picture in ((2, b"a jpeg"), (3, b"another")):
            previews = {job_id: preview_text(Preview(picture, step))}
            api.records.advance_all([(job_id, fence)], JobStatus.RUNNING, previews=previews, step=step)
            await anyio.sleep(0.15)
        api.records.advance(job_id, fence, JobStatus.RUNNING, step=4)
        await anyio.sleep(0.15)
    told = [event.data["preview"] for event in stream.events if event.data["preview"]]
    assert [base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) for url in told] == [b"a jpeg", b"another"]


async def test_the_newest_picture_is_to_be_had_by_itself(api: Api, shared: Services) -> None:
    job_id = await submit(shared)
    path, mine = f"/polyreel/v1/jobs/{job_id}/preview", {"Authorization": f"Bearer {api.key}"}
    none = await api.http.get(path, headers=mine)
    assert (none.status_code, none.json()["code"]) == (404, "no_preview")
    fence = api.claim(job_id)
    previews = {job_id: preview_text(Preview(b"a jpeg", 2))}
    api.records.advance_all([(job_id, fence)], JobStatus.RUNNING, previews=previews)
    shown = await api.http.get(path, headers=mine)
    assert (shown.status_code, shown.content, shown.headers["content-type"]) == (200, b"a jpeg", "image/jpeg")
    others = await api.http.get(path, headers={"Authorization": f"Bearer {api.other_key}"})
    assert (others.status_code, others.json()["code"]) == (404, "unknown_job")


async def test_who_connects_again_is_told_the_end_that_it_missed(api: Api, shared: Services) -> None:
    job_id = await submit(shared)
    async with following(api, job_id) as stream:
        seen = await stream.until("progress")
    api.finish(job_id)
    async with following(api, job_id, last_event_id=seen.id) as again:
        end = await again.until("end")
        await again.over()
    assert again.names() == ["end"]
    async with following(api, job_id, last_event_id=end.id) as once_more:
        await once_more.over()
    assert (once_more.status, once_more.text) == (204, "")


async def test_who_connects_again_is_not_told_what_it_knows(api: Api, shared: Services) -> None:
    job_id = await submit(shared)
    async with following(api, job_id) as stream:
        seen = await stream.until("progress")
    async with following(api, job_id, last_event_id=seen.id) as again:
        await anyio.sleep(0.2)
        assert again.names() == []
        api.records.cancel(job_id)
        await again.until("end")


async def test_nobody_elses_job_can_be_followed(api: Api, shared: Services) -> None:
    job_id = await submit(shared, "bob")
    refused = await api.http.get(path_of(job_id), headers={"Authorization": f"Bearer {api.key}"})
    unknown = await api.http.get(
        path_of("7b1e0000-0000-4000-8000-000000000000"), headers={"Authorization": f"Bearer {api.key}"}
    )
    assert (refused.status_code, refused.content) == (404, unknown.content)
    assert (await api.http.get(path_of(job_id))).status_code == 401


async def test_a_stream_ends_when_its_key_is_good_no_more(
    api: Api, shared: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyreel.errors import InvalidKey

    job_id = await submit(shared)

    async def revoked(_self: object, _key: object, _scope: object) -> Caller:
        raise InvalidKey("The API key is not known here.")

    async with following(api, job_id) as stream:
        await stream.until("progress")
        monkeypatch.setattr(Services, "caller", revoked)
        await stream.over()
    assert stream.names() == ["progress"]


async def test_a_job_that_is_deleted_while_it_is_followed_is_gone(api: Api, shared: Services) -> None:
    job_id = await submit(shared)
    async with following(api, job_id) as stream:
        await stream.until("progress")
        api.records.client.delete(f"polyreel:job:{job_id}")
        assert (await stream.until("gone")).data == {"id": job_id}
        await stream.over()


async def test_a_stream_without_news_says_that_it_lives(
    api: Api, shared: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PING_S", 0.1)
    job_id = await submit(shared)
    async with following(api, job_id) as stream:
        with anyio.fail_after(5):
            while stream.text.count(": ping\n\n") < 2:  # noqa: ASYNC110
                await anyio.sleep(0.01)
    assert events.KEEPALIVE_COMMENT == b": ping\n\n"


async def test_a_server_that_is_told_to_stop_says_so_and_ends_its_streams(api: Api, shared: Services) -> None:
    job_id = await submit(shared)
    async with following(api, job_id) as stream:
        await stream.until("progress")
        shared.stopping.set()
        assert (await stream.until("server-restarting")).data == {"id": job_id}
        await stream.over()
    assert await settled(shared) == 0


async def test_while_redis_is_away_a_stream_waits_and_goes_on(
    api: Api, shared: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(shared)
    really, away = Services.record, [True]

    async def record(self: Services, asked: str) -> Any:
        if away[0]:
            raise QueueUnavailable("The queue does not answer right now.")
        return await really(self, asked)

    monkeypatch.setattr(Services, "record", record)
    async with following(api, job_id) as stream:
        await anyio.sleep(0.3)
        assert (stream.names(), stream.is_over) == ([], False)
        away[0] = False
        await stream.until("progress")
        away[0] = True
        api.finish(job_id)
        await anyio.sleep(0.2)
        assert stream.names() == ["progress"]
        away[0] = False
        await stream.until("end")


async def test_one_look_at_a_job_serves_all_who_follow_it_and_none_is_left_behind(
    api: Api, shared: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(shared)
    looks: list[float] = []
    really = Services.record

    async def record(self: Services, asked: str) -> Any:
        looks.append(time.monotonic())
        return await really(self, asked)

    monkeypatch.setattr(Services, "record", record)
    before = len(asyncio.all_tasks())
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(following(api, job_id)) for _ in range(20)]
        for stream in streams:
            await stream.until("progress")
        assert len(shared.watches) == 1
        looks.clear()
        await anyio.sleep(0.4)
        assert 1 <= len(looks) <= 25, "one poller, whoever follows"
    assert await settled(shared) == 0
    await anyio.sleep(0.05)
    assert len(asyncio.all_tasks()) == before


async def test_the_more_jobs_are_followed_the_longer_is_the_pause_between_looks_at_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()

    async def read() -> None:
        return None

    watches = watching.Watches()
    pauses = []
    async with AsyncExitStack() as stack:
        for n in range(100):
            await stack.enter_async_context(watches.following(str(n), read))
            pauses.append(watches.pause_s())
    assert (pauses[0], pauses[24], pauses[99]) == (0.25, 0.25, 1.0)
    assert len(watches) == 0


@pytest.mark.slow
async def test_three_hundred_follow_twenty_jobs_and_hear_of_each_step_within_a_second(
    api: Api, shared: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RELIABILITY.md, L3: lag p95 of at most a second, and no more memory than what is under way."""
    monkeypatch.undo()  # at the pace of a real server
    before = psutil.Process().memory_info().rss
    jobs = [await submit(shared) for _ in range(20)]
    fences = {job_id: api.claim(job_id) for job_id in jobs}
    lags: list[float] = []
    async with AsyncExitStack() as stack:
        streams = [(job, await stack.enter_async_context(following(api, job))) for job in jobs for _ in range(15)]
        for _, stream in streams:
            await stream.until("progress", 20)
        for step in (1, 2):
            told_at: dict[str, float] = {}
            for job_id in jobs:
                api.records.advance(job_id, fences[job_id], JobStatus.RUNNING, step=step, total_steps=4)
                told_at[job_id] = time.monotonic()
            await anyio.sleep(1.1)
            for job_id, stream in streams:
                heard = [e.at for e in stream.events if e.name == "progress" and e.data["step"] >= step]
                lags.append(heard[0] - told_at[job_id] if heard else 9.0)
    assert len(lags) == 600
    assert statistics.quantiles(lags, n=20)[-1] <= 1.0
    assert psutil.Process().memory_info().rss - before <= 100e6


async def test_the_stream_is_documented(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    route = document["paths"]["/polyreel/v1/jobs/{job_id}/events"]["get"]
    assert list(route["responses"]["200"]["content"]) == ["text/event-stream"]
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    assert "Last-Event-ID" in [parameter["name"] for parameter in route["parameters"]]
