"""What administrators did: written with the change itself, read by administrators alone, and without secrets."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from polyreel.audit import AUDIT, Actor, note
from polyreel.commands import Commands
from polyreel.key_store import KeyStore, pepper_of
from polyreel.keys import ApiKeys, load_keys
from polyreel.limits import KeyLimits
from polyreel.settings import Settings
from tests.conftest import Api
from tests.core.jobs import redis_time

pytestmark = pytest.mark.anyio


@pytest.fixture
def keys(settings: Settings) -> ApiKeys:
    """Alice administers, bob does not."""
    return load_keys(settings.model_copy(update={"admins": ("alice",)}))[0]


async def audit(api: Api, query: str = "", key: str | None = None) -> dict[str, Any]:
    answer = await api.http.get(f"/polyreel/v1/audit{query}", headers={"Authorization": f"Bearer {key or api.key}"})
    return {"status": answer.status_code, **answer.json()}


async def test_a_command_for_a_model_is_written_down_with_who_gave_it_from_where(api: Api, settings: Settings) -> None:
    text, key = KeyStore(api.records.client, pepper_of(settings), Actor("root")).create("carol", {"admin"})
    answer = await api.http.post(
        "/polyreel/v1/models/ltx-tiny/pin", headers={"Authorization": f"Bearer {text}", "X-Request-Id": "req-17"}
    )
    assert answer.status_code == 202
    found = await audit(api)
    [pinned, created] = found["entries"]
    assert abs(pinned.pop("at") - redis_time(api.records.client)) < 60
    assert pinned.pop("id") > created["id"]
    assert pinned == {
        "actor": "carol",
        "key": key.id,
        "action": "models.pin",
        "subject": "ltx-tiny",
        "detail": {},
        "request_id": "req-17",
        "address": "127.0.0.1",
    }
    assert found["next"] is None
    assert text not in str(found)


async def test_every_change_of_a_key_is_written_down(api: Api, settings: Settings) -> None:
    store = KeyStore(api.records.client, pepper_of(settings), Actor("command line (ops)"))
    first, old = store.create("carol", {"submit", "read"}, KeyLimits(max_running=1))
    second, new = store.rotate(old.id, overlap_s=60)
    store.revoke(new.id)
    found = await audit(api)
    assert [(entry["action"], entry["subject"], entry["detail"]) for entry in found["entries"]] == [
        ("keys.revoke", new.id, {"owner": "carol"}),
        ("keys.rotate", new.id, {"owner": "carol", "scopes": "read submit", "from": old.id}),
        ("keys.create", old.id, {"owner": "carol", "scopes": "read submit"}),
    ]
    assert {(entry["actor"], entry["key"], entry["address"]) for entry in found["entries"]} == {
        ("command line (ops)", "", "")
    }
    assert first not in str(found)
    assert second not in str(found)


async def test_a_worker_that_is_told_alone_is_named(api: Api) -> None:
    Commands(api.records.client).give("load", "atelier", "gpu-box-1", Actor("alice"))
    [entry] = (await audit(api))["entries"]
    assert (entry["action"], entry["subject"], entry["detail"]) == ("models.load", "atelier", {"worker": "gpu-box-1"})


async def test_it_comes_in_pages_the_newest_first(api: Api) -> None:
    for number in range(5):
        note(api.records.client, "ops", "backup.create", f"file-{number}", {"bytes": 12})
    first = await audit(api, "?limit=2")
    second = await audit(api, f"?limit=2&before={first['next']}")
    last = await audit(api, f"?limit=2&before={second['next']}")
    pages = [[entry["subject"] for entry in page["entries"]] for page in (first, second, last)]
    assert pages == [["file-4", "file-3"], ["file-2", "file-1"], ["file-0"]]
    assert last["next"] is None
    assert first["entries"][0]["detail"] == {"bytes": "12"}


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("?limit=0", "limit", "limit must be a whole number from 1 to 1000, got '0'"),
        ("?limit=1001", "limit", "limit must be a whole number from 1 to 1000, got '1001'"),
        ("?limit=two", "limit", "limit must be a whole number from 1 to 1000, got 'two'"),
        ("?before=yesterday", "before", "before must be an entry's id, such as 1764028800000-0, got 'yesterday'"),
    ],
)
async def test_a_wrong_page_is_refused(api: Api, query: str, field: str, message: str) -> None:
    answer = await audit(api, query)
    assert answer["status"] == 400
    assert message in str(answer)


async def test_it_is_for_administrators_alone(api: Api) -> None:
    answer = await audit(api, key=api.other_key)
    assert (answer["status"], answer["code"]) == (403, "not_allowed")


async def test_the_oldest_entries_make_room(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyreel.audit.KEPT", 100)
    client = api.records.client
    for number in range(400):
        note(client, "ops", "backup.create", f"file-{number}")
    kept = client.xlen(AUDIT)
    assert 100 <= kept < 400, "Redis trims where it is cheap"
    [newest] = (await audit(api, "?limit=1"))["entries"]
    assert newest["subject"] == "file-399"


async def test_what_a_request_asked_for_is_in_the_log_too(api: Api) -> None:
    with capture_logs() as logs:
        note(api.records.client, Actor("carol", "Ab12Cd34", "req-1", "10.0.0.1"), "models.pin", "ltx-tiny")
        note(api.records.client, Actor("command line (ops)"), "backup.create", "what a command does it tells people")
    assert logs == [
        {
            "event": "audit",
            "log_level": "info",
            "actor": "carol",
            "key_id": "Ab12Cd34",
            "action": "models.pin",
            "subject": "ltx-tiny",
            "request_id": "req-1",
            "address": "10.0.0.1",
        }
    ]
