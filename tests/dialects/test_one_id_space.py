"""A job is one job, whichever dialect made it: read and cancelled in every other by its owner, by uuid and by number.

The dialects that read are named here, because each has its own path and words; those that make are found.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2
import pytest

from polyreel.records import StoredJob
from polyreel.settings import Settings
from server.dialects import Dialect
from tests.conftest import Api
from tests.dialects.calling import call, call_of, content_of, every_submit, headers_of

pytestmark = pytest.mark.anyio

UNKNOWN = "7b1e0000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Reader:
    """How a dialect reads a job.

    Args:
        method, path: `{id}` stands for the job.
        names: what the answer calls the job, and what it should.
        status: the dialect's word for where the job is.
        done, cancelled: those for a succeeded and for a cancelled one.
    """

    name: str
    method: str
    path: str
    names: Callable[[Any], object]
    expected: Callable[[StoredJob], object]
    status: Callable[[Any], str]
    done: str
    cancelled: str

    async def ask(self, api: Api, job: object, key: str) -> httpx2.Response:
        """Read a job as the owner of a key."""
        return await api.http.request(
            self.method,
            self.path.format(id=job),
            headers={"Authorization": f"Bearer {key}"},
            json={"key": key} if self.method == "POST" else None,
        )


READERS = (
    Reader(
        "native",
        "GET",
        "/polyreel/v1/jobs/{id}",
        lambda body: body["id"],
        lambda stored: stored.job.id,
        lambda body: body["status"],
        "succeeded",
        "cancelled",
    ),
    Reader(
        "modelslab",
        "POST",
        "/api/v6/video/fetch/{id}",
        lambda body: body["id"],
        lambda stored: stored.number,
        lambda body: body["status"],
        "success",
        "failed",
    ),
    Reader(
        "novita",
        "GET",
        "/v3/async/task-result?task_id={id}",
        lambda body: body["task"]["task_id"],
        lambda stored: stored.job.id,
        lambda body: body["task"]["status"],
        "TASK_STATUS_SUCCEED",
        "TASK_STATUS_FAILED",
    ),
    Reader(
        "openai",
        "GET",
        "/v1/videos/{id}",
        lambda body: body["id"],
        lambda stored: stored.job.id,
        lambda body: body["status"],
        "completed",
        "failed",
    ),
)


async def read_everywhere(api: Api, made: StoredJob) -> dict[str, str]:
    """Return each dialect's word for where a job is, having asked by uuid and by number."""
    words = {}
    for reader in READERS:
        for name in (made.job.id, made.number):
            answer = await reader.ask(api, name, api.key)
            assert answer.status_code == 200, (reader.name, answer.text)
            assert reader.names(answer.json()) == reader.expected(made), reader.name
            words[reader.name] = reader.status(answer.json())
    return words


@every_submit
async def test_what_one_dialect_has_made_every_other_reads(api: Api, dialect: Dialect) -> None:
    _, [made] = await call(api, dialect, content_of(dialect, api.key), headers_of(dialect, api.key))
    assert made.job.dialect == dialect.name
    assert await read_everywhere(api, made) == {reader.name: reader.done for reader in READERS}


@every_submit
async def test_to_others_it_reads_exactly_as_no_job_at_all(api: Api, dialect: Dialect) -> None:
    """RELIABILITY.md, A1; the neighbours of its number too."""
    _, [made] = await call(api, dialect, content_of(dialect, api.key), headers_of(dialect, api.key))
    for reader in READERS:
        unknown = await reader.ask(api, UNKNOWN, api.other_key)
        assert unknown.status_code == 404, reader.name
        for name in (made.job.id, made.number, made.number + 1, made.number - 1):
            answer = await reader.ask(api, name, api.other_key)
            assert (answer.status_code, answer.content) == (404, unknown.content), reader.name


@every_submit
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/polyreel/v1/jobs/{id}/cancel"), ("DELETE", "/polyreel/v1/jobs/{id}")],
    ids=["cancel", "delete"],
)
async def test_what_one_dialect_has_begun_every_other_sees_cancelled(
    api: Api, dialect: Dialect, method: str, path: str
) -> None:
    async with begun(api, dialect) as made:
        others = await api.http.request(
            method, path.format(id=made.number), headers={"Authorization": f"Bearer {api.other_key}"}
        )
        assert others.status_code == 404
        ended = await api.http.request(
            method, path.format(id=made.number), headers={"Authorization": f"Bearer {api.key}"}
        )
        assert (ended.status_code, ended.json()["id"], ended.json()["status"]) == (200, made.job.id, "cancelled")
    assert await read_everywhere(api, made) == {reader.name: reader.cancelled for reader in READERS}


@every_submit
async def test_what_one_dialect_has_begun_openais_delete_ends_for_good(api: Api, dialect: Dialect) -> None:
    async with begun(api, dialect) as made:
        gone = await api.http.delete(f"/v1/videos/{made.job.id}", headers={"Authorization": f"Bearer {api.key}"})
        assert (gone.status_code, gone.json()["deleted"]) == (200, True)
    for reader in READERS:
        assert (await reader.ask(api, made.job.id, api.key)).status_code == 404, reader.name


@every_submit
async def test_a_job_of_a_model_that_the_catalogue_has_lost_is_read_cancelled_and_deleted_as_any(
    api: Api, dialect: Dialect, make_api: Callable[..., Api], settings: Settings
) -> None:
    """As after a restart with another profile, or an upgrade that calls a model otherwise."""
    others = {"another": settings.models["ltx-tiny"].model_copy(update={"names": {"universal": ("ltx",)}})}
    after = make_api(
        models=others, loras={}, embeddings={}, dialects={"modelslab": {"default_model": "ltx"}, "universal": {}}
    )
    async with begun(api, dialect) as made:
        assert len(await read_everywhere(after, made)) == 4
        bearer = {"Authorization": f"Bearer {api.key}"}
        listed = (await after.http.get("/polyreel/v1/jobs", headers=bearer)).json()["jobs"]
        assert [(job["id"], job["model"]) for job in listed] == [(made.job.id, made.job.request.model)]
        assert (await after.http.get("/v1/videos", headers=bearer)).json()["data"][0]["id"] == made.job.id
        ended = await after.http.post(f"/polyreel/v1/jobs/{made.job.id}/cancel", headers=bearer)
        assert ended.json()["status"] == "cancelled"
    assert await read_everywhere(after, made) == {reader.name: reader.cancelled for reader in READERS}
    assert (await after.http.delete(f"/polyreel/v1/jobs/{made.job.id}", headers=bearer)).json()["deleted"] is True


@asynccontextmanager
async def begun(api: Api, dialect: Dialect) -> AsyncIterator[StoredJob]:
    """Give a job whose client still waits, where the dialect lets it wait; nobody works on it."""
    method, path = call_of(dialect)

    async def send() -> None:
        content, headers = content_of(dialect, api.key), headers_of(dialect, api.key)
        await api.http.request(method, path, content=content, headers=headers)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            while not api.records.open_ids():  # noqa: ASYNC110 the job arrives in Redis, which sets no event
                await anyio.sleep(0.01)
            yield api.newest()
