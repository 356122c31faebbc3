"""Calls a dialect knowing only what it publishes: its example, its prefixes and its error envelope."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2
import pytest
from fastapi.routing import APIRoute

from polyreel.errors import UnknownRoute
from polyreel.records import StoredJob
from server.dialects import Dialect, dialects
from tests.conftest import Api

WRONG_KEY = "mallory-key-9876543210"
#: As in the fixture `api`; some tests make APIs of their own.
SECTIONS: dict[str, dict[str, Any]] = {"modelslab": {"hold_s": 0}, "universal": {"endpoint_model": "ltx"}}


def over(found: list[Dialect]) -> pytest.MarkDecorator:
    """Run a test over some dialects."""
    return pytest.mark.parametrize("dialect", found, ids=lambda dialect: dialect.name)


every_dialect = over(list(dialects().values()))

#: Those that take jobs; the others read what these have taken.
every_submit = over([dialect for dialect in dialects().values() if dialect.example])


@dataclass
class Worker:
    """Plays the worker beside a submit, because some dialects answer only when the video is there."""

    api: Api
    seen: list[StoredJob] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            self.finish_all()
            await anyio.sleep(0.01)

    def finish_all(self) -> None:
        for job_id in self.api.records.open_ids():
            stored = self.api.records.get(job_id)
            assert stored is not None
            self.seen.append(stored)
            self.api.finish(job_id)


def call_of(dialect: Dialect) -> tuple[str, str]:
    """Return method and path of the example, or of the first route of a dialect that takes no jobs."""
    if dialect.example:
        return dialect.example.method, dialect.example.path
    route = next(route for route in dialect.router.routes if isinstance(route, APIRoute))
    return min(route.methods), route.path.replace("{job_id}", "7b1e0000-0000-4000-8000-000000000000")


async def call(
    api: Api, dialect: Dialect, content: bytes, headers: Mapping[str, str], times: int = 1
) -> tuple[list[httpx2.Response], list[StoredJob]]:
    """Send a submit so many times at once; return the responses and the records of the jobs that they made."""
    worker = Worker(api)
    responses: list[httpx2.Response] = []
    method, path = call_of(dialect)

    async def send() -> None:
        while True:
            response = await api.http.request(method, path, content=content, headers=headers)
            # A busy machine may take too long for many at once, and tells some to come again.
            if times == 1 or response.status_code != 503:
                break
        responses.append(response)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run)
            async with anyio.create_task_group() as senders:
                for _ in range(times):
                    senders.start_soon(send)
            group.cancel_scope.cancel()
    worker.finish_all()
    return responses, worker.seen


def content_of(dialect: Dialect, key: str, **more: Any) -> bytes:
    """Return the example's body, with `key` where the dialect carries one."""
    body = dialect.example.body if dialect.example else {}
    return json.dumps({**body, **more}).replace("{key}", key).encode()


def headers_of(dialect: Dialect, key: str) -> dict[str, str]:
    headers = dialect.example.headers if dialect.example else {"Authorization": "Bearer {key}"}
    return {name: value.replace("{key}", key) for name, value in headers.items()}


def with_raw(dialect: Dialect, key: str, raw: bytes) -> bytes:
    """Return the example's body with `raw` as the value of one more key, which is otherwise ignored."""
    return content_of(dialect, key)[:-1] + b', "unheard_of": ' + raw + b"}"


def assert_is_error(dialect: Dialect, response: httpx2.Response, *statuses: int) -> None:
    """Assert status, JSON of the dialect's own shape, and that no key is repeated in it."""
    assert response.status_code in statuses, response.text[:500]
    settings = dialect.settings.model_validate(SECTIONS.get(dialect.name, {}))
    rendered = dialect.render_error(UnknownRoute("any"), settings)
    assert response.headers["content-type"] == rendered.headers["content-type"]
    assert rendered.headers["content-type"] in ("application/json", "application/problem+json")
    sample = json.loads(bytes(rendered.body))
    answer = response.json()
    assert isinstance(answer, dict)
    assert set(sample) <= set(answer)
    assert set(answer) != {"detail"}, "FastAPI's own shape"
    for key in ("alice-key-0123456789", WRONG_KEY):
        assert key not in response.text
