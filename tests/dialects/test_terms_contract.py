"""What every dialect's submit owes a client that repeats itself or asks for a lane, whichever API it speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest

from polyreel.errors import QueueUnavailable
from polyreel.job import VideoJob
from polyreel.keys import Caller
from polyreel.records import StoredJob
from polyreel.terms import Terms
from server.dialects import Dialect
from tests.conftest import Api
from tests.dialects.calling import SECTIONS, assert_is_error, call, content_of, every_submit, headers_of

pytestmark = pytest.mark.anyio

#: How a submit that was taken is answered: done or begun, or, in a contract that has the word, accepted.
TAKEN = {200, 202}


async def submit(
    api: Api, dialect: Dialect, times: int = 1, content: bytes | None = None, **headers: str
) -> tuple[list[httpx2.Response], list[StoredJob]]:
    """Send the dialect's example, with more headers; names are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = content or content_of(dialect, api.key)
    return await call(api, dialect, content, headers_of(dialect, api.key) | named, times)


@every_submit
async def test_the_same_key_with_the_same_request_is_the_same_job_and_the_same_answer(
    api: Api, dialect: Dialect
) -> None:
    [first], [made] = await submit(api, dialect, Idempotency_Key="retry-1")
    [again], none = await submit(api, dialect, Idempotency_Key="retry-1")
    assert none == []
    assert first.status_code in TAKEN
    assert again.status_code == first.status_code
    assert first.headers["content-type"] == again.headers["content-type"]
    assert what_it_names(first) == what_it_names(again)
    assert made.job.owner == "alice"
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"


def what_it_names(answer: httpx2.Response) -> object:
    """Return the job's id where the vendor's answer has one, else the video."""
    if answer.headers["content-type"] != "application/json":
        return answer.content
    body = answer.json()
    return body.get("id") or body.get("task_id") or body["outputs"]


@every_submit
async def test_the_same_key_with_another_request_is_a_422_in_its_own_shape(api: Api, dialect: Dialect) -> None:
    await submit(api, dialect, Idempotency_Key="retry-1")
    [other], jobs = await submit(
        api, dialect, content=content_of(dialect, api.key, unheard_of=1), Idempotency_Key="retry-1"
    )
    assert_is_error(dialect, other, 422)
    assert "idempotent-replayed" not in other.headers
    assert jobs == []


@every_submit
async def test_an_owners_keys_are_its_own(api: Api, dialect: Dialect) -> None:
    _, [of_alice] = await submit(api, dialect, Idempotency_Key="retry-1")
    _, [of_bob] = await call(
        api,
        dialect,
        content_of(dialect, api.other_key),
        headers_of(dialect, api.other_key) | {"Idempotency-Key": "retry-1"},
    )
    assert (of_alice.job.owner, of_bob.job.owner) == ("alice", "bob")


@every_submit
async def test_fifty_at_once_with_one_key_make_one_job(api: Api, dialect: Dialect) -> None:
    answers, jobs = await submit(api, dialect, times=50, Idempotency_Key="retry-1")
    assert {answer.status_code for answer in answers} <= TAKEN
    assert len({str(what_it_names(answer)) for answer in answers}) == 1
    assert len(jobs) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


@every_submit
async def test_after_a_day_the_same_key_makes_a_new_job(api: Api, dialect: Dialect) -> None:
    _, [first] = await submit(api, dialect, Idempotency_Key="retry-1")
    client = api.records.client
    [remembered] = client.keys("polyreel:idempotency:*")
    assert 86_400 - 60 < client.ttl(remembered) <= 86_400
    client.delete(remembered)
    _, [second] = await submit(api, dialect, Idempotency_Key="retry-1", Cache_Control="no-cache", X_Use_Cache="false")
    assert second.job.id != first.job.id


@every_submit
async def test_a_job_whose_first_answer_was_lost_in_a_503_is_found_again(
    api: Api, dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = api.app.state.services.queue
    really, taken = queue.submit, []

    def goes_away_after(job: VideoJob, terms: Terms) -> StoredJob:
        stored: StoredJob = really(job, terms)
        if not taken:
            taken.append(stored.job.id)
            raise QueueUnavailable("The reply was lost.")
        return stored

    monkeypatch.setattr(queue, "submit", goes_away_after)
    with anyio.fail_after(20):
        method, path = dialect.example.method, dialect.example.path
        headers = headers_of(dialect, api.key) | {"Idempotency-Key": "retry-1"}
        lost = await api.http.request(method, path, content=content_of(dialect, api.key), headers=headers)
    assert_is_error(dialect, lost, 503)
    [again], jobs = await submit(api, dialect, Idempotency_Key="retry-1")
    assert again.status_code in TAKEN
    assert [stored.job.id for stored in jobs] == taken


@every_submit
async def test_an_acknowledged_job_is_found_again_when_the_queue_is_full(
    api: Api, make_api: Callable[..., Api], dialect: Dialect
) -> None:
    await submit(api, dialect, Idempotency_Key="retry-1")
    full = make_api(max_queued=0, dialects=SECTIONS)
    [again], _ = await submit(full, dialect, Idempotency_Key="retry-1")
    [new], _ = await submit(full, dialect, Idempotency_Key="retry-2")
    assert again.status_code in TAKEN
    assert_is_error(dialect, new, 429)


@every_submit
async def test_one_owner_may_have_so_many_unfinished_jobs(make_api: Callable[..., Api], dialect: Dialect) -> None:
    api = make_api(max_queued_per_key=1, dialects=SECTIONS)
    services = api.app.state.services
    request = next(iter((await submit(api, dialect))[1])).job.request
    await services.submit(request, dialect=dialect.name, caller=Caller("alice"))
    method, path = dialect.example.method, dialect.example.path
    # With a key of its own: Hugging Face's answers the same request from its cache.
    headers = headers_of(dialect, api.key) | {"Idempotency-Key": "another"}
    refused = await api.http.request(method, path, content=content_of(dialect, api.key), headers=headers)
    assert_is_error(dialect, refused, 429)
    assert refused.headers["Retry-After"] == "30"
    await services.submit(request, dialect=dialect.name, caller=Caller("bob"))


WRONG: list[tuple[dict[str, str], str]] = [
    (
        {"Idempotency-Key": ""},
        "Idempotency-Key must be one text of 1 to 255 printable ASCII characters, got 0 character",
    ),
    (
        {"Idempotency-Key": "k" * 256},
        "Idempotency-Key must be one text of 1 to 255 printable ASCII characters, got 256",
    ),
    ({"Idempotency-Key": "k\u00e9"}, "Idempotency-Key must be one text of 1 to 255 printable ASCII characters, got 2"),
    ({"X-Polyreel-Priority": "urgent"}, "X-Polyreel-Priority must be one of interactive, bulk"),
    ({"X-Polyreel-Priority": ""}, "X-Polyreel-Priority must be one of interactive, bulk"),
    ({"X-Polyreel-Exact": "perhaps"}, "X-Polyreel-Exact must be one of 1, true, 0, false"),
]


@every_submit
@pytest.mark.parametrize(
    ("headers", "message"), WRONG, ids=[f"{next(iter(row[0]))} {n}" for n, row in enumerate(WRONG)]
)
async def test_a_wrong_header_is_refused_and_named(
    api: Api, dialect: Dialect, headers: dict[str, str], message: str
) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    everything: Any = headers_of(dialect, api.key) | encoded
    [response], jobs = await call(api, dialect, content_of(dialect, api.key), everything)
    assert_is_error(dialect, response, 400)
    assert message in response.text
    assert jobs == []


@every_submit
async def test_two_idempotency_keys_are_refused(api: Api, dialect: Dialect) -> None:
    headers = [*headers_of(dialect, api.key).items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    [response], jobs = await call(api, dialect, content_of(dialect, api.key), httpx2.Headers(headers))
    assert_is_error(dialect, response, 400)
    assert jobs == []


def learn_all(api: Api) -> None:
    """Say that the jobs of every model are brief: one of which nothing is known runs alone."""
    for model in api.app.state.services.catalogue.models:
        api.records.learn_seconds(model, 2.0)


@every_submit
async def test_of_a_model_that_was_never_measured_a_job_runs_alone_and_is_saved(api: Api, dialect: Dialect) -> None:
    _, [made] = await submit(api, dialect)
    assert (made.job.saved, made.job.batch_key) == (True, "")


@every_submit
async def test_without_headers_a_job_is_interactive_and_may_share_a_call(api: Api, dialect: Dialect) -> None:
    learn_all(api)
    _, [made] = await submit(api, dialect)
    assert (made.job.lane, made.job.saved) == ("interactive", False)
    assert len(made.job.batch_key) == (16 if len(made.job.request.prompts) == 1 else 0)


@every_submit
@pytest.mark.parametrize("value", ["bulk", " Bulk "])
async def test_a_client_may_ask_for_the_bulk_lane(api: Api, dialect: Dialect, value: str) -> None:
    _, [made] = await submit(api, dialect, X_Polyreel_Priority=value)
    assert made.job.lane == "bulk"


@every_submit
@pytest.mark.parametrize(("value", "is_exact"), [("1", True), ("True", True), ("0", False), ("false", False)])
async def test_a_client_may_ask_for_the_very_bytes_of_a_run_by_itself(
    api: Api, dialect: Dialect, value: str, is_exact: bool
) -> None:
    learn_all(api)
    _, [made] = await submit(api, dialect, X_Polyreel_Exact=value)
    # With a key of its own: Hugging Face's answers the same request from its cache.
    _, [plain] = await submit(api, dialect, Idempotency_Key="another")
    assert made.job.batch_key == ("" if is_exact else plain.job.batch_key)
