"""Every route that needs a key, in every dialect: which scope opens it, that no wrong key does, that nobody learns of
another owner's job.

The routes are those of our own OpenAPI, so a new one is held to this unasked.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import pytest

from polyreel.errors import UnknownRoute
from polyreel.key_store import KeyStore, pepper_of
from polyreel.keys import Caller, Scope, _checksum
from polyreel.settings import Settings
from server.app import dialect_of
from tests.conftest import KEY, OTHER_KEY, Api
from tests.core.jobs import REQUEST

pytestmark = pytest.mark.anyio

NOBODYS = "7b1e0000-0000-4000-8000-000000000000"

#: What stands in a path instead of its parameters.
PARAMETERS = {
    "{job_id}": NOBODYS,
    "{video_id}": NOBODYS,
    "{rest}": "Lightricks/LTX-Video",
    "{task}": "text-to-video",
    "{name}": "Lightricks/LTX-Video",
    "{action}": "load",
    "{model}": "ltx-tiny",
}

#: Routes that another scope opens than their method says: GET reads, everything else submits.
OTHERWISE: dict[tuple[str, str], Scope] = {
    **{
        ("POST", f"{prefix}/fetch/{{job_id}}"): "read"
        for prefix in ("/api/v6/video", "/api/v7/video-fusion", "/api/v1/enterprise/video")
    },
    ("POST", "/api/v6/processing/request_count"): "read",
    ("POST", "/api/v6/video/system_details"): "read",
    ("POST", "/api/v1/enterprise/video/system_details"): "read",
    ("POST", "/polyreel/v1/models/{name}/{action}"): "admin",
    ("GET", "/polyreel/v1/webhooks/secret"): "submit",
    ("GET", "/polyreel/v1/audit"): "admin",
    ("POST", "/polyreel/v1/snippets"): "read",
}


def operations(api: Api) -> Iterator[tuple[str, str]]:
    """Give method and path of each operation that OpenAPI says needs a key."""
    for path, found in api.app.openapi()["paths"].items():
        for method, about in found.items():
            if about.get("security"):
                yield method.upper(), path


def scope_of(method: str, path: str) -> Scope:
    return OTHERWISE.get((method, path), "read" if method in ("GET", "HEAD") else "submit")


async def call(
    api: Api, method: str, path: str, headers: Mapping[str, str] | httpx2.Headers, query: str = "", body: bytes = b"{}"
) -> httpx2.Response:
    for parameter, value in PARAMETERS.items():
        path = path.replace(parameter, value)
    content = None if method in ("GET", "DELETE") else body
    return await api.http.request(method, path + query, headers=headers, content=content)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def store(api: Api, settings: Settings) -> KeyStore:
    return KeyStore(api.records.client, pepper_of(settings))


async def test_the_table_names_only_routes_that_there_are(api: Api) -> None:
    assert set(OTHERWISE) <= set(operations(api))
    assert len(list(operations(api))) >= 40


@pytest.mark.parametrize("scope", ["submit", "read", "admin"])
async def test_a_scope_opens_its_routes_and_no_others(api: Api, store: KeyStore, scope: Scope) -> None:
    """Nothing is submitted: the bodies are empty, and whoever lacks the scope does not even learn that."""
    key, _ = store.create("carol", {scope})
    wrong = []
    for method, path in operations(api):
        answer = await call(api, method, path, bearer(key))
        expected = scope_of(method, path) == scope
        if (answer.status_code not in (401, 403)) is not expected:
            wrong.append((method, path, answer.status_code, answer.text[:200]))
    assert wrong == []
    assert api.records.open_ids() == []


def damaged(key: str) -> str:
    """Return the key with a wrong checksum."""
    return key[:-1] + ("A" if key[-1] != "A" else "B")


def other_secret(key: str) -> str:
    """Return a key of the same id with another secret and a right checksum, as one who guesses would make it."""
    body = key[:12] + ("A" if key[12] != "A" else "B") + key[13:44]
    return body + _checksum(body)


async def test_no_wrong_key_opens_any_route(api: Api, store: KeyStore) -> None:
    good, _ = store.create("alice")
    revoked, name = store.create("alice")
    store.revoke(name.id)
    expired, name = store.create("alice")
    store.rotate(name.id, overlap_s=0)
    both = httpx2.Headers([("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {KEY}")])
    query = f"?key={good}&api_key={good}&token={good}&access_token={good}&authorization=Bearer%20{good}"
    wrong: dict[str, tuple[Any, str]] = {
        "none": ({}, ""),
        "unknown": (bearer("mallory-key-9876543210"), ""),
        "empty": ({"Authorization": "Bearer "}, ""),
        "another scheme": ({"Authorization": f"Basic {good}"}, ""),
        "a wrong checksum": (bearer(damaged(good)), ""),
        "another secret": (bearer(other_secret(good)), ""),
        "revoked": (bearer(revoked), ""),
        "expired": (bearer(expired), ""),
        "10 KB": (bearer("k" * 10_240), ""),
        "10 KB of one of ours": (bearer(good * 205), ""),
        "two that differ": (both, ""),
        "in the address": ({}, query),
    }
    found = []
    for method, path in operations(api):
        for what, (headers, query) in wrong.items():
            answer = await call(api, method, path, headers, query)
            dialect = dialect_of(path.split("{")[0])
            assert dialect is not None
            rendered = dialect.render_error(UnknownRoute("any"), api.app.state.dialect_settings[dialect.name])
            shape = set(json.loads(bytes(rendered.body)))
            is_refused = answer.status_code in (401, 403) and shape <= set(answer.json())
            if not is_refused or any(key in answer.text for key in (good, revoked, expired, KEY)):
                found.append((what, method, path, answer.status_code, answer.text[:200]))
    assert found == []


async def test_two_keys_that_differ_are_refused_wherever_they_stand(api: Api) -> None:
    path = "/api/v6/video/fetch/1"
    for headers, body in [
        (bearer(OTHER_KEY), {"key": KEY}),
        ({"key": OTHER_KEY}, {"key": KEY}),
        (bearer(OTHER_KEY) | {"key": KEY}, {}),
    ]:
        answer = await api.http.post(path, headers=headers, json=body)
        assert (answer.status_code, answer.json()["status"]) == (401, "error")
        assert KEY not in answer.text
        assert OTHER_KEY not in answer.text
    same = await api.http.post(path, headers=bearer(KEY) | {"key": KEY}, json={"key": KEY})
    assert same.status_code != 401


@pytest.fixture
async def of_alice(api: Api) -> tuple[str, int]:
    """A finished job of alice's with a webhook, between two of bob's; its id and number."""
    shared = api.app.state.services
    made = []
    for owner in ("bob", "alice", "bob"):
        caller = Caller(owner)
        made.append(await shared.submit(REQUEST, dialect="native", caller=caller, webhook="https://example.com/hook"))
    api.finish(made[1].job.id)
    return made[1].job.id, made[1].number


def id_operations(api: Api) -> list[tuple[str, str]]:
    """Return the operations that name a job, with `{id}` where it stands."""
    named = [
        (method, path.replace("{job_id}", "{id}").replace("{video_id}", "{id}"))
        for method, path in operations(api)
        if "{job_id}" in path or "{video_id}" in path
    ]
    return [
        *named,
        ("GET", "/v3/async/task-result?task_id={id}"),
        ("GET", "/polyreel/v1/jobs?after={id}"),
        ("GET", "/v1/videos?after={id}"),
    ]


async def test_another_owners_job_reads_exactly_like_one_that_is_not_there(api: Api, of_alice: tuple[str, int]) -> None:
    """Whatever names it, and whoever guesses the whole number between two of his own; but for the id that was sent."""
    job_id, number = of_alice
    pairs = [
        (job_id, str(uuid.uuid4())),
        (str(number), str(number + 1_000_000)),
        (f"video_{job_id}", f"video_{uuid.uuid4()}"),
        (f"video_{job_id.replace('-', '')}", f"video_{uuid.uuid4().hex}"),
    ]
    differ, statuses = [], set()
    for method, path in id_operations(api):
        for theirs, nobodys in pairs:
            if "after=" in path and theirs.isdigit():
                continue  # a number is a place between his own jobs, whoever's it is
            answers = []
            for one in (theirs, nobodys):
                answer = await call(api, method, path.replace("{id}", one), bearer(OTHER_KEY), body=b'{"prompt": "x"}')
                headers = {k: v for k, v in answer.headers.items() if k not in ("x-request-id", "content-length")}
                answers.append((answer.status_code, headers, answer.text.replace(one, "ID")))
            statuses.add(answers[0][0])
            if answers[0] != answers[1]:
                differ.append((method, path, answers))
    assert differ == []
    assert min(statuses) >= 400
    stored = api.records.get(job_id)
    assert stored is not None
    assert stored.job.status == "succeeded"


async def test_lists_hold_only_ones_own(api: Api, of_alice: tuple[str, int]) -> None:
    job_id, number = of_alice
    paths = ("/polyreel/v1/jobs", f"/polyreel/v1/jobs?after={number + 1}", "/v1/videos", "/v1/videos?limit=100")
    for path in paths:
        theirs = await api.http.get(path, headers=bearer(OTHER_KEY))
        assert theirs.status_code == 200
        assert job_id not in theirs.text
        assert job_id.replace("-", "") not in theirs.text
        assert str(number) not in theirs.text
    mine = await api.http.get("/polyreel/v1/jobs", headers=bearer(KEY))
    assert job_id in mine.text
