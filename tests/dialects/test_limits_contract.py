"""What a key may, in every dialect: its scopes, its models and its limits, refused in the dialect's own words."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from polyreel.key_store import KeyStore, pepper_of
from polyreel.keys import KeyLimits
from polyreel.settings import Settings
from server.dialects import Dialect
from tests.conftest import Api
from tests.dialects.calling import assert_is_error, call, content_of, every_submit, headers_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(api: Api, settings: Settings) -> KeyStore:
    return KeyStore(api.records.client, pepper_of(settings))


async def submit(api: Api, dialect: Dialect, key: str, times: int = 1, **headers: str) -> Any:
    """Send the dialect's example with a key; names of headers are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await call(api, dialect, content_of(dialect, key), headers_of(dialect, key) | named, times)


@every_submit
async def test_a_stored_key_submits_for_its_owner_and_counts_for_its_account(
    api: Api, store: KeyStore, dialect: Dialect
) -> None:
    text, key = store.create("carol")
    [answer], [made] = await submit(api, dialect, text)
    assert answer.status_code in (200, 202)
    assert (made.job.owner, made.job.account) == ("carol", f"key:{key.id}")
    assert api.records.usage(f"key:{key.id}").submits == 1
    assert api.records.usage("carol").submits == 0


@every_submit
async def test_a_key_that_reads_may_not_submit(api: Api, store: KeyStore, dialect: Dialect) -> None:
    text, _ = store.create("carol", {"read"})
    [answer], jobs = await submit(api, dialect, text)
    assert_is_error(dialect, answer, 403)
    assert jobs == []


@every_submit
async def test_a_key_may_not_use_a_model_that_it_does_not_name(api: Api, store: KeyStore, dialect: Dialect) -> None:
    [_], [usual] = await submit(api, dialect, api.key)
    served = api.app.state.services.catalogue.models
    others = tuple(name for name in served if name != usual.job.request.model)
    text, _ = store.create("carol", limits=KeyLimits(models=others))
    [answer], jobs = await submit(api, dialect, text)
    assert_is_error(dialect, answer, 403)
    assert jobs == []
    text, _ = store.create("dave", limits=KeyLimits(models=(usual.job.request.model,)))
    [answer], [made] = await submit(api, dialect, text)
    assert made.job.owner == "dave"


@every_submit
async def test_a_limit_is_a_429_that_says_when_it_is_free_again(api: Api, store: KeyStore, dialect: Dialect) -> None:
    text, _ = store.create("carol", limits=KeyLimits(requests_per_minute=2))
    for number in range(2):
        await submit(api, dialect, text, Idempotency_Key=f"k{number}")
    [refused], jobs = await submit(api, dialect, text, Idempotency_Key="k2")
    assert_is_error(dialect, refused, 429)
    assert 20 <= int(refused.headers["Retry-After"]) <= 30
    assert jobs == []
    [again], jobs = await submit(api, dialect, text, Idempotency_Key="k0")
    assert again.status_code in (200, 202), "what was taken before is answered"
    assert jobs == []


@every_submit
async def test_of_a_hundred_submits_at_once_exactly_as_many_are_taken_as_may(
    api: Api, store: KeyStore, dialect: Dialect
) -> None:
    text, key = store.create("carol", limits=KeyLimits(requests_per_minute=2))  # the next is due in 30 s
    statuses: list[int] = []
    method, path = dialect.example.method, dialect.example.path

    async def send(number: int) -> None:
        headers = headers_of(dialect, text) | {"Idempotency-Key": f"k{number}"}
        while True:
            answer = await api.http.request(method, path, content=content_of(dialect, text), headers=headers)
            if answer.status_code != 503:  # a busy machine may be too slow for a hundred at once; then they ask again
                break
        statuses.append(answer.status_code)

    async def work() -> None:
        while True:
            for job_id in api.records.open_ids():
                api.finish(job_id)
            await anyio.sleep(0.01)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            async with anyio.create_task_group() as senders:
                for number in range(100):
                    senders.start_soon(send, number)
            group.cancel_scope.cancel()
    assert sorted(statuses) in ([200] * 2 + [429] * 98, [202] * 2 + [429] * 98)
    assert api.records.usage(f"key:{key.id}").submits == 2


@every_submit
async def test_a_body_cannot_say_whose_job_it_is_or_how_much_it_may(
    api: Api, store: KeyStore, dialect: Dialect
) -> None:
    text, key = store.create("carol", limits=KeyLimits(max_queued=1))
    claims = {
        "owner": "alice",
        "account": "alice",
        "tenant": "alice",
        "scopes": ["admin"],
        "status": "succeeded",
        "limits": {"max_queued": 9},
        "expected_s": 0,
        "fence": 7,
    }
    content = content_of(dialect, text, **claims)
    [answer], jobs = await call(api, dialect, content, headers_of(dialect, text))
    if answer.status_code >= 400:  # a dialect that refuses what it does not know
        assert_is_error(dialect, answer, 400, 422)
        return
    [made] = jobs
    assert (made.job.owner, made.job.account, made.job.status) == ("carol", f"key:{key.id}", "queued")
    assert "alice" not in json.dumps({**made.job.to_record(), "request": ""})


@every_submit
async def test_what_a_job_is_expected_to_take_is_reserved_and_counts_against_the_day(
    api: Api, store: KeyStore, dialect: Dialect
) -> None:
    for model in api.app.state.services.catalogue.models:
        api.records.learn_seconds(model, 40.0)
    text, _ = store.create("carol", limits=KeyLimits(gpu_seconds_per_day=39))
    [refused], jobs = await submit(api, dialect, text)
    assert_is_error(dialect, refused, 429)
    assert "This job is expected to take 40 seconds of a GPU, and this API key may use 39 a day." in refused.text
    assert jobs == []
    text, key = store.create("carol", limits=KeyLimits(gpu_seconds_per_day=41))
    caller = await api.app.state.services.callers.find(text)
    [_], [made] = await submit(api, dialect, text)
    assert (await api.app.state.services.usage(caller)).reserved_seconds == 0.0, "it has ended"
    await api.app.state.services.submit(made.job.request, dialect=dialect.name, caller=caller)
    assert api.records.usage(f"key:{key.id}").reserved_seconds == 40.0
