"""Keys in Redis as the API sees them: good at once, ended within two seconds, and their texts are nowhere."""

from __future__ import annotations

import ast
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
import redis
from pydantic import SecretStr
from structlog.testing import capture_logs

import polyreel
import server
from polyreel.errors import InvalidKey, QueueUnavailable
from polyreel.key_store import KeyStore, pepper_of
from polyreel.keys import Caller, KeyLimits, _checksum
from polyreel.settings import Settings
from server.callers import Callers
from server.dialects import dialects
from tests.conftest import KEY, Api
from tests.core.jobs import redis_time
from tests.dialects.calling import SECTIONS, content_of, headers_of

pytestmark = pytest.mark.anyio

STATUS = "/polyreel/v1/jobs"


@pytest.fixture
def store(api: Api, settings: Settings) -> KeyStore:
    return KeyStore(api.records.client, pepper_of(settings))


@pytest.fixture
def callers(api: Api) -> Callers:
    return api.app.state.services.callers


def age(callers: Callers, seconds: float) -> None:
    """Let what was read of the keys be so old."""
    for name, seen in callers._seen.items():
        callers._seen[name] = replace(seen, read_at=seen.read_at - seconds, at=seen.at - seconds)


async def status_of(api: Api, key: str) -> int:
    return (await api.http.get(STATUS, headers={"Authorization": f"Bearer {key}"})).status_code


async def test_a_stored_key_says_who_calls_and_how_much_he_may(callers: Callers, store: KeyStore) -> None:
    limits = KeyLimits(max_queued=3, models=("ltx",))
    text, key = store.create("carol", {"read", "admin"}, limits)
    assert await callers.find(text) == Caller("carol", f"key:{key.id}", frozenset({"read", "admin"}), limits)


async def test_a_new_key_is_good_at_once_though_it_was_asked_for_before(api: Api, store: KeyStore) -> None:
    text, key = store.create("alice")
    record = api.records.client.dump(f"polyreel:key:{key.id}")
    api.records.client.delete(f"polyreel:key:{key.id}")
    assert await status_of(api, text) == 401
    api.records.client.restore(f"polyreel:key:{key.id}", 0, record)
    assert await status_of(api, text) == 200


async def test_a_key_is_read_once_a_second_and_a_revoked_one_ends_with_that(
    api: Api, callers: Callers, store: KeyStore
) -> None:
    text, key = store.create("alice")
    assert await status_of(api, text) == 200
    before = api.records.client.info("commandstats")["cmdstat_hgetall"]["calls"]
    assert [await status_of(api, text) for _ in range(5)] == [200] * 5
    assert api.records.client.info("commandstats")["cmdstat_hgetall"]["calls"] == before
    store.revoke(key.id)
    age(callers, 1.0)
    refused = await api.http.get(STATUS, headers={"Authorization": f"Bearer {text}"})
    assert (refused.status_code, refused.json()["detail"]) == (401, "The API key was revoked.")


async def test_a_revoked_key_is_good_nowhere_two_seconds_later(make_api: Callable[..., Api], store: KeyStore) -> None:
    """In none of several processes, by the real clock."""
    processes = [make_api(dialects=SECTIONS) for _ in range(2)]
    text, key = store.create("alice")
    assert [await status_of(api, text) for api in processes] == [200, 200]
    store.revoke(key.id)
    ended_at = time.monotonic()
    while [await status_of(api, text) for api in processes] != [401, 401]:
        assert time.monotonic() - ended_at < 2
        await anyio.sleep(0.1)


async def test_a_key_expires_also_while_it_is_believed(callers: Callers, store: KeyStore) -> None:
    text, key = store.create("alice", lasts_s=3600)
    assert (await callers.find(text)).owner == "alice"
    callers._seen[key.id] = replace(callers._seen[key.id], at=callers._seen[key.id].at + 3601)
    with pytest.raises(InvalidKey, match=r"^The API key has expired\.$"):
        await callers.find(text)


async def test_who_does_not_have_the_key_is_not_told_that_it_was_revoked(callers: Callers, store: KeyStore) -> None:
    text, key = store.create("alice")
    store.revoke(key.id)
    body = text[:12] + "0" * 32
    with pytest.raises(InvalidKey, match=r"^The API key is not known here\.$"):
        await callers.find(body + _checksum(body))


async def test_a_key_of_another_pepper_is_unknown(api: Api, store: KeyStore) -> None:
    api.records.client.delete("polyreel:keys:pepper")
    text, _ = KeyStore(api.records.client, b"another pepper").create("alice")
    assert await status_of(api, text) == 401


async def test_what_is_mistyped_costs_redis_nothing(api: Api, callers: Callers, store: KeyStore) -> None:
    text, _ = store.create("alice")
    before = api.records.client.info("stats")["total_commands_processed"]
    for wrong in (text[:-1] + ("A" if text[-1] != "A" else "B"), text[:-1], "hf_0123456789abcdef", "k" * 10_240):
        with pytest.raises(InvalidKey):
            await callers.find(wrong)
    assert api.records.client.info("stats")["total_commands_processed"] == before + 1  # this question itself


async def test_the_last_use_is_kept_to_a_minute(api: Api, callers: Callers, store: KeyStore) -> None:
    text, key = store.create("alice")
    wrong = text[:12] + "0" * 32
    assert await status_of(api, wrong) == 401
    assert store.all()[0].last_used_at == 0.0
    assert await status_of(api, text) == 200
    used_at = store.all()[0].last_used_at
    assert abs(used_at - redis_time(api.records.client)) < 5
    age(callers, 2.0)
    assert await status_of(api, text) == 200
    assert store.all()[0].last_used_at == used_at
    api.records.client.hset(f"polyreel:key:{key.id}", "last_used_at", used_at - 61)
    age(callers, 2.0)
    assert await status_of(api, text) == 200
    assert store.all()[0].last_used_at >= used_at


async def test_redis_without_memory_locks_nobody_out(
    api: Api, callers: Callers, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = store.create("alice")

    async def full(*_: object) -> None:
        raise redis.OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'.")

    monkeypatch.setattr(callers.reader, "hset", full)
    assert await status_of(api, text) == 200


async def test_while_redis_is_away_configured_keys_are_known_and_others_are_not_refused(
    make_api: Callable[..., Api], store: KeyStore
) -> None:
    text, _ = store.create("alice")
    api = make_api(redis_url=SecretStr("unix:///nowhere/redis.sock"), dialects=SECTIONS)
    callers: Callers = api.app.state.services.callers
    assert (await callers.find(KEY)).owner == "alice"
    with pytest.raises(QueueUnavailable):
        await callers.find(text)
    assert await status_of(api, text) == 503
    unknown = "mallory-key-9876543210"
    assert await status_of(api, unknown) == 401


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What all loggers write at the lowest level, the client's own excepted."""
    text = io.StringIO()
    monkeypatch.setattr(logging.getLogger("httpx2"), "disabled", True)
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


def in_redis(api: Api) -> str:
    """Return all keys and values; short texts are not compressed."""
    assert api.app.state.services.settings.redis_url is not None
    with redis.Redis.from_url(api.app.state.services.settings.redis_url.get_secret_value()) as client:
        return "\n".join((key + b" " + (client.dump(key) or b"")).decode("latin-1") for key in client.scan_iter())


async def test_no_text_of_a_key_is_in_redis_in_a_log_or_in_an_answer(
    api: Api, store: KeyStore, log: io.StringIO
) -> None:
    good, key = store.create("alice")
    ended, name = store.create("alice")
    store.revoke(name.id)
    mistyped = good[:-1] + ("A" if good[-1] != "A" else "B")
    said = []
    with capture_logs() as events:
        for sent in (good, ended, mistyped, KEY, "k" * 5000):
            for dialect in dialects().values():
                if dialect.example is None or dialect.name in ("universal", "huggingface"):
                    continue  # these wait for a worker
                example = dialect.example
                for content in (content_of(dialect, sent), b"{", content_of(dialect, sent) + b"x"):
                    answer = await api.http.request(
                        example.method, example.path, content=content, headers=headers_of(dialect, sent)
                    )
                    said.append(answer.text + json.dumps(dict(answer.headers)))
            for header in ("Authorization", "key", "X-Api-Key"):
                answer = await api.http.get(STATUS, headers={header: f"Bearer {sent}"})
                said.append(answer.text)
            answer = await api.http.get(f"{STATUS}?key={sent[:200]}")
            said.append(answer.text)
    everything = "\n".join([*said, repr(events), log.getvalue(), in_redis(api)])
    assert key.id in everything, "what is searched holds what it should"
    assert "request refused" in everything
    for text in (good, ended, mistyped, KEY, "k" * 100):
        assert text not in everything
        assert text[12:40] not in everything


#: Where keys, hashes and signatures are compared.
SECRETIVE = ("keys.py", "key_store.py", "callers.py", "links.py", "signing.py")


def test_hashes_and_signatures_are_compared_in_constant_time_only() -> None:
    """A `==` stops at the first byte that differs, and so tells where it is."""
    found, read = [], 0
    for package in (polyreel, server):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            if path.name not in SECRETIVE:
                continue
            read += 1
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                    text = ast.unparse(node).lower()
                    if any(word in text for word in ("digest", "signature", "secret", "hmac", "pepper")):
                        found.append(f"{path.name}: {text}")
    assert read >= 4
    assert found == []
