"""All that Polyreel keeps in Redis as lines of JSON, and back: a copy that any Redis or Valkey reads.

    {"key": "polyreel:job:…", "type": "hash", "expires_at_ms": 1764028800000, "value": {…}}

Not `DUMP`: its form belongs to one version of one server, and nobody can look into it. Bytes that are no UTF-8 (RQ
deflates) are kept as lone surrogates, as Python's file names are. What belongs to live processes alone is left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import redis

from polyreel.errors import ConfigurationError

#: Whose keys are copied.
OURS = ("polyreel:", "rq:")

#: What says something of processes that live now, or is found out anew: not copied.
LEFT_OUT = (
    "polyreel:claim:",
    "polyreel:commands:",
    "polyreel:held",
    "polyreel:preview:",
    "polyreel:reaper",
    "polyreel:repaired",
    "polyreel:residents",
    "polyreel:storage",  # the mark of one place; a restore marks its own
    "polyreel:waiting:",
    "polyreel:webhooks:couriers",
    "polyreel:worker:",
    "rq:clean_registries:",
    "rq:worker:",
    "rq:workers",
)

#: Keys that are read and written in one round trip, and parts of one value.
_AT_ONCE = 500

#: How long writes are held without being held anew, seconds: if this process dies, they go on after that.
_HOLD_S = 10.0
_HOLD_AGAIN_S = 2.0

#: An entry of the copy. Any: its value is a text, a list or a dict, by its type.
Entry = dict[str, Any]

#: How each type is read; Any: redis-py's pipeline and its answers.
_READ: dict[str, Callable[[Any, str], Any]] = {
    "string": lambda pipe, key: pipe.get(key),
    "hash": lambda pipe, key: pipe.hgetall(key),
    "list": lambda pipe, key: pipe.lrange(key, 0, -1),
    "set": lambda pipe, key: pipe.smembers(key),
    "zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
    "stream": lambda pipe, key: pipe.xrange(key),
}

#: And how parts of it are written.
_WRITE: dict[str, Callable[[Any, str, list[Any]], Any]] = {
    "hash": lambda pipe, key, part: pipe.hset(key, mapping=dict(part)),
    "list": lambda pipe, key, part: pipe.rpush(key, *part),
    "set": lambda pipe, key, part: pipe.sadd(key, *part),
    "zset": lambda pipe, key, part: pipe.zadd(key, dict(part)),
    "stream": lambda pipe, key, part: [pipe.xadd(key, fields, id=name) for name, fields in part],
}


def open_copier(url: str, name: str) -> redis.Redis:
    """Return a client that reads and writes any bytes as text.

    Args:
        name: that Redis shows of its connections.
    """
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        encoding_errors="surrogateescape",
        client_name=name,
        socket_connect_timeout=5,
        socket_timeout=60,
    )


def our_keys(client: redis.Redis) -> Iterator[str]:
    """Give every key of ours once, those that are left out of copies too."""
    for prefix in OURS:
        seen: set[str] = set()  # a scan may give a key twice while the table grows
        for key in client.scan_iter(match=f"{prefix}*", count=_AT_ONCE):
            if key not in seen:
                seen.add(key)
                yield str(key)


def read_entries(client: redis.Redis) -> Iterator[Entry]:
    """Give an entry for each key, as they are at one moment: other clients' writes wait until the last one is read.

    Raises:
        ConfigurationError: this Redis does not let us hold writes.
    """
    with _writes_held(client) as hold:
        keys = (key for key in our_keys(client) if not key.startswith(LEFT_OUT))
        while some := list(islice(keys, _AT_ONCE)):
            hold()
            yield from _read_some(client, some)


def _read_some(client: redis.Redis, keys: list[str]) -> Iterator[Entry]:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.type(key)
            pipe.pttl(key)
        told = pipe.execute()
        kinds = dict(zip(keys, told[::2], strict=True))
        lives_ms = dict(zip(keys, told[1::2], strict=True))
        seconds, microseconds = client.time()
        now_ms = seconds * 1000 + microseconds // 1000
        present = [key for key in keys if kinds[key] != "none"]
        for key in present:
            _READ[kinds[key]](pipe, key)
        values = pipe.execute()
    for key, value in zip(present, values, strict=True):
        expires = {"expires_at_ms": now_ms + lives_ms[key]} if lives_ms[key] > 0 else {}
        yield {"key": key, "type": kinds[key], **expires, "value": sorted(value) if isinstance(value, set) else value}


@contextmanager
def _writes_held(client: redis.Redis) -> Iterator[Callable[[], None]]:
    """Hold the writes of other clients; give what is to be called now and then, so that they stay held."""
    held_at = 0.0

    def hold() -> None:
        nonlocal held_at
        if time.monotonic() - held_at > _HOLD_AGAIN_S:
            client.client_pause(int(_HOLD_S * 1000), all=False)
            held_at = time.monotonic()

    try:
        hold()
    except redis.ResponseError as err:
        raise ConfigurationError(
            f"redis_url: this Redis does not let writes be held for the moment of a copy (CLIENT PAUSE: {err}). Allow "
            "this user the command, or take a snapshot by its own means, with the results' folder."
        ) from err
    try:
        yield hold
    finally:
        with suppress(redis.RedisError):  # they go on by themselves in a moment
            client.client_unpause()


def write_entries(client: redis.Redis, entries: Iterable[Entry], now_ms: int) -> tuple[int, int]:
    """Write entries into a Redis that has none of these keys.

    Args:
        now_ms: by Redis' clock; what had to expire until then is left out.

    Returns:
        How many were written, and how many had expired.
    """
    written = expired = 0
    for some in in_parts(entries, _AT_ONCE):
        with client.pipeline(transaction=False) as pipe:
            for entry in some:
                expires_at_ms = entry.get("expires_at_ms")
                if expires_at_ms is not None and expires_at_ms <= now_ms:
                    expired += 1
                    continue
                _write(pipe, entry)
                if expires_at_ms is not None:
                    pipe.pexpireat(entry["key"], expires_at_ms)
                written += 1
            pipe.execute()
    return written, expired


def _write(pipe: Any, entry: Entry) -> None:
    """Write one; Any: redis-py's pipeline."""
    key, value = _bytes(entry["key"]), _bytes(entry["value"])  # hiredis packs no surrogates by itself
    if entry["type"] == "string":
        pipe.set(key, value)
        return
    for part in in_parts(value.items() if isinstance(value, dict) else value, _AT_ONCE):
        _WRITE[entry["type"]](pipe, key, part)


def _bytes(value: Any) -> Any:
    """Return a value with its texts as the bytes that they were; Any: JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, dict):
        return {_bytes(name): _bytes(part) for name, part in value.items()}
    return [_bytes(part) for part in value] if isinstance(value, list) else value


def parse_entry(line: bytes) -> Entry:
    """Read a line of a copy.

    Raises:
        ValueError: it is none of ours.
    """
    entry: Entry = json.loads(line)
    is_entry = isinstance(entry, dict) and isinstance(entry.get("key"), str) and "value" in entry
    if not is_entry or not entry["key"].startswith(OURS) or entry.get("type") not in _READ:
        raise ValueError("a line is no entry of a copy")
    return entry


def remove_all(client: redis.Redis) -> int:
    """Remove every key of ours; return how many."""
    removed = 0
    for some in in_parts(list(our_keys(client)), _AT_ONCE):
        removed += int(client.unlink(*some))
    return removed


def in_parts(values: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Give values in lists of at most `most` (`itertools.batched` comes with Python 3.12). Any: whatever they are."""
    rest = iter(values)
    while part := list(islice(rest, most)):
        yield part
