"""Every documented error of both contracts of Hugging Face, as it goes over the wire."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from polyreel.errors import QueueUnavailable
from polyreel.key_store import KeyStore, pepper_of
from polyreel.keys import KeyLimits, Scope
from polyreel.settings import Settings
from server.services import Services
from tests.conftest import Api
from tests.dialects.golden import Refusal, refusals

pytestmark = pytest.mark.anyio

ROWS = [*refusals("huggingface"), *refusals("universal")]
TITLES = [f"{dialect}: {row}" for dialect in ("huggingface", "universal") for row in refusals(dialect)]

#: What each `given` of a row sets: the server's settings, and those of both dialects.
GIVEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "": ({}, {}),
    "the queue is full": ({"max_queued": 0}, {}),
    "nobody makes the video in time": ({}, {"wait_s": 0.2}),
    "the key `one` came before with another request": ({}, {"wait_s": 0}),
    "the job fails": ({}, {}),
    "the queue does not answer": ({}, {}),
    "the model is not loaded, and nobody waits for it": ({}, {"wait_for_model": False}),
    "the key may only read": ({}, {}),
    "the key is for wan alone": ({}, {}),
}

#: What a `given` says of the key: its scopes, and its limits.
KEYS: dict[str, tuple[set[Scope], KeyLimits]] = {
    "the key may only read": ({"read"}, KeyLimits()),
    "the key is for wan alone": ({"submit"}, KeyLimits(models=("atelier",))),
}


@pytest.fixture
def serve(make_api: Callable[..., Api], settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a context in which the server is as a row says."""

    async def refuse(*_: object, **__: object) -> None:
        raise QueueUnavailable("The queue does not answer right now. Try again in a few seconds.")

    async def fail(api: Api) -> None:
        while not api.records.open_ids():  # noqa: ASYNC110 the job arrives in Redis, which sets no event
            await anyio.sleep(0.01)
        api.fail(api.newest().job.id)

    @asynccontextmanager
    async def served(row: Refusal) -> AsyncIterator[Api]:
        changes, own = GIVEN[row.given]
        sections = {"huggingface": own, "universal": {"endpoint_model": "ltx", **own}}
        sections["universal"].pop("wait_for_model", None)
        api = make_api(dialects=sections, **changes)
        if row.given in KEYS:
            scopes, limits = KEYS[row.given]
            api.key, _ = KeyStore(api.records.client, pepper_of(settings)).create("carol", scopes, limits=limits)
        if row.given == "the queue does not answer":
            monkeypatch.setattr(Services, "submit", refuse)
        if row.given.startswith("the key `one`"):
            other = json.loads(json.dumps(row.wire["body"]).replace("a cat", "a dog"))
            await api.http.post(row.wire["path"], json=other, headers=headers_of(api, row))
        async with anyio.create_task_group() as tasks:
            if row.given == "the job fails":
                tasks.start_soon(fail, api)
            yield api
            tasks.cancel_scope.cancel()

    return served


def headers_of(api: Api, row: Refusal) -> dict[str, str]:
    sent = {"Authorization": "Bearer {key}", **row.wire.get("headers", {})}
    return {name: value.replace("{key}", api.key) for name, value in sent.items() if value is not None}


@pytest.mark.parametrize("row", ROWS, ids=TITLES)
async def test_a_documented_error_is_answered_in_its_contracts_words(serve: Any, row: Refusal) -> None:
    wire = row.wire
    content = wire["content"] if "content" in wire else json.dumps(wire["body"])
    async with serve(row) as api:
        with anyio.fail_after(20):
            answer = await api.http.request(
                wire["method"], wire["path"], content=content.encode(), headers=headers_of(api, row)
            )
        job_id = answer.json().get("job_id", "")

    assert answer.status_code == row.status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(row.answer).replace("{job_id}", job_id))
    assert len(job_id) == (36 if "job_id" in row.answer else 0)
    for name, value in row.headers.items():
        assert answer.headers[name] == value.replace("{job_id}", job_id)
