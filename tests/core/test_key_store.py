"""Keys in Redis: made, ended, followed by others; their texts are nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from polyreel.errors import ConfigurationError, QueueUnavailable
from polyreel.key_store import KeyStore, StoredKey, pepper_of
from polyreel.keys import KeyLimits, digest_of, key_id
from polyreel.profiles import load_settings
from polyreel.records import connect
from tests.core.jobs import redis_time

PEPPER = b"a pepper for tests"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url, patient=False) as client:
        yield client


@pytest.fixture
def store(client: redis.Redis) -> KeyStore:
    return KeyStore(client, PEPPER)


def everything(client: redis.Redis) -> str:
    """Return all that Redis holds, as text."""
    found = []
    for key in client.scan_iter():
        kind = client.type(key)
        found.append((key, client.hgetall(key) if kind == "hash" else client.get(key) if kind == "string" else kind))
    return json.dumps(found)


def test_a_key_is_kept_as_a_keyed_hash_with_what_it_may(client: redis.Redis, store: KeyStore) -> None:
    text, key = store.create("alice", {"read"}, KeyLimits(max_running=2, models=("ltx",)), lasts_s=3600)
    record = client.hgetall(f"polyreel:key:{key.id}")
    assert record["digest"] == digest_of(PEPPER, text)
    assert {name: record[name] for name in ("owner", "account", "scopes", "limits")} == {
        "owner": "alice",
        "account": f"key:{key.id}",
        "scopes": '["read"]',
        "limits": '{"max_running": 2, "models": ["ltx"]}',
    }
    assert key_id(text) == key.id
    assert 3599 < key.expires_at - redis_time(client) <= 3600
    assert store.all() == [key]
    assert text not in everything(client)
    assert text[12:44] not in everything(client)


def test_a_key_may_submit_and_read_for_ever_unless_more_is_said(store: KeyStore) -> None:
    _, key = store.create("alice")
    assert key == StoredKey(key.id, "alice", f"key:{key.id}", frozenset({"submit", "read"}), created_at=key.created_at)
    assert key.state(store.now() + 10**9) == "active"


def test_keys_are_listed_the_oldest_first(store: KeyStore) -> None:
    made = [store.create(owner)[1].id for owner in ("zoe", "alice", "alice")]
    assert [key.id for key in store.all()] == made


def test_a_revoked_key_stays_listed_with_the_time_of_the_first_word(store: KeyStore) -> None:
    _, key = store.create("alice")
    revoked = store.revoke(key.id)
    assert revoked.state(store.now()) == "revoked"
    assert abs(revoked.revoked_at - store.now()) < 5
    assert store.revoke(key.id) == revoked
    assert store.all() == [revoked]


def test_a_leaked_key_is_revoked_by_its_text(store: KeyStore) -> None:
    text, key = store.create("alice")
    assert store.revoke(text).id == key.id


def test_a_rotated_key_has_a_follower_with_the_same_account_and_ends(store: KeyStore) -> None:
    _, old = store.create("alice", {"submit"}, KeyLimits(max_queued=3), lasts_s=100 * 86400)
    text, new = store.rotate(old.id, overlap_s=3600)
    assert key_id(text) == new.id != old.id
    assert (new.owner, new.account, new.scopes, new.limits) == ("alice", old.account, {"submit"}, old.limits)
    assert abs(new.expires_at - new.created_at - 100 * 86400) < 1
    [old, _] = store.all()
    assert abs(old.expires_at - store.now() - 3600) < 5
    assert store.rotate(new.id, overlap_s=0)[1].account == old.account
    assert store.all()[1].state(store.now()) == "expired"


def test_rotating_prolongs_nothing(store: KeyStore) -> None:
    _, old = store.create("alice", lasts_s=60)
    store.rotate(old.id, overlap_s=86400)
    assert store.all()[0].expires_at == old.expires_at


@pytest.mark.parametrize("end", ["revoke", "rotate"])
def test_an_ended_key_is_not_rotated(store: KeyStore, end: str) -> None:
    _, key = store.create("alice")
    state = {"revoke": "revoked", "rotate": "expired"}[end]
    if end == "revoke":
        store.revoke(key.id)
    else:
        store.rotate(key.id, overlap_s=0)
    with pytest.raises(ConfigurationError, match=f"^The key {key.id} is {state}; make a new one"):
        store.rotate(key.id, overlap_s=60)


@pytest.mark.parametrize("name", ["abcdefgh", "", "*", "prk_" + "0" * 46])
def test_an_unknown_key_is_an_error(store: KeyStore, name: str) -> None:
    for change in (lambda: store.revoke(name), lambda: store.rotate(name, 60)):
        with pytest.raises(ConfigurationError, match=r"^No key has this id; `polyreel keys list` shows them all\.$"):
            change()


@pytest.mark.parametrize("owner", ["", " ", "a b", "a:b", "-a", "é", "a" * 65, "a\n"])
def test_an_owner_has_a_plain_name(client: redis.Redis, store: KeyStore, owner: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^NAME must be 1 to 64 letters, digits and \. _ @ -, "):
        store.create(owner)
    assert client.keys("*") == []


def test_somebody_can_enter_only_while_a_key_is_good(store: KeyStore) -> None:
    assert not store.has_usable()
    _, first = store.create("alice")
    _, second = store.create("bob")
    store.revoke(first.id)
    assert store.has_usable()
    store.rotate(second.id, 0)
    assert store.has_usable()
    store.revoke(store.all()[-1].id)
    assert not store.has_usable()


def test_a_machine_with_another_pepper_is_told_so(client: redis.Redis, store: KeyStore) -> None:
    """Its keys would be refused everywhere else, and nobody could say why."""
    _, key = store.create("alice")
    elsewhere = KeyStore(client, b"another pepper")
    for change in (lambda: elsewhere.create("bob"), lambda: elsewhere.rotate(key.id, 0), elsewhere.has_usable):
        with pytest.raises(ConfigurationError, match=r"^key_pepper: the keys in this Redis were made under another "):
            change()
    assert elsewhere.revoke(key.id).revoked_at > 0, "a key is ended from anywhere"
    assert len(store.all()) == 1


def test_the_pepper_is_the_settings_or_the_state_folders(tmp_path: Path) -> None:
    given = load_settings(state_dir=tmp_path / "a", key_pepper="0123456789abcdef").settings
    assert pepper_of(given) == b"0123456789abcdef"
    made = load_settings(state_dir=tmp_path / "a").settings
    assert pepper_of(made) == (tmp_path / "a" / "pepper").read_bytes()


def test_a_short_pepper_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="key_pepper: must be 16 or more characters that nobody can guess"):
        load_settings(state_dir=tmp_path, key_pepper="short")


def test_a_scope_or_limit_of_a_newer_version_allows_nothing_here(client: redis.Redis, store: KeyStore) -> None:
    _, key = store.create("alice")
    client.hset(f"polyreel:key:{key.id}", mapping={"scopes": '["dream", "read"]', "limits": '{"max_dreams": 1}'})
    [read] = store.all()
    assert (read.scopes, read.limits) == ({"read"}, KeyLimits())


def test_without_redis_it_says_so() -> None:
    with connect("unix:///nowhere/redis.sock", patient=False) as client:
        for call in (KeyStore(client, PEPPER).all, KeyStore(client, PEPPER).has_usable):
            with pytest.raises(QueueUnavailable):
                call()
