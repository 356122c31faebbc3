"""Who calls: the keys that this process knows by itself, and those in Redis, read at most once a second each."""

from __future__ import annotations

import contextlib
import hmac
import json
import time
from dataclasses import dataclass, field, replace

import redis.asyncio
from fastapi import Request

from polyreel.audit import Actor
from polyreel.errors import InvalidKey
from polyreel.key_store import StoredKey, key_name
from polyreel.keys import ApiKeys, Caller, digest_of, key_id, unknown_key
from server.gate import Gate
from server.joining import Joining

#: For how long a stored key is believed to be as it was read, seconds: a revoked one is good nowhere two seconds later.
_FRESH_S = 1.0

#: How exact the time of a key's last use is kept, seconds.
_LAST_USED_S = 60.0


def actor_of(request: Request, caller: Caller) -> Actor:
    """Return who sends a request, for the audit log."""
    address = request.client.host if request.client else ""
    return Actor(caller.owner, caller.key, str(request.state.request_id), address)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A key as Redis had it at `at`, by its clock, read at `read_at` by ours (monotonic)."""

    key: StoredKey
    digest: str
    at: float
    read_at: float

    @property
    def now(self) -> float:
        """The time by Redis' clock."""
        return self.at + time.monotonic() - self.read_at


@dataclass(frozen=True)
class Callers:
    """Tells whose key a request carries.

    Args:
        keys: known here; these are good also while Redis is away.
        reader: asynchronous client.
        joining: knows what the hashes of the keys in Redis are keyed with.
    """

    keys: ApiKeys
    reader: redis.asyncio.Redis
    gate: Gate
    joining: Joining
    _seen: dict[str, _Seen] = field(default_factory=dict)

    async def find(self, key: str | None) -> Caller:
        """Return who sends a request with this key.

        Raises:
            MissingKey, InvalidKey: no key, or none of ours; or ours, and revoked or expired.
            QueueUnavailable: only Redis knows such keys, and it does not answer.
        """
        known = self.keys.find(key)
        if known is not None:
            return known
        name = key_id(key or "")
        if name is None:  # the checksum too: what is mistyped costs nobody a question
            raise unknown_key()
        seen = self._seen.get(name)
        if seen is None or time.monotonic() - seen.read_at >= _FRESH_S:
            seen = await self._read(name)
        # The id is no secret, so that it is told apart from an unknown one by the time tells nothing.
        if seen is None or not hmac.compare_digest(seen.digest, self._digest_of(key or "")):
            raise unknown_key()
        state = seen.key.state(seen.now)
        if state != "active":
            raise InvalidKey("The API key was revoked." if state == "revoked" else "The API key has expired.")
        if seen.now - seen.key.last_used_at > _LAST_USED_S:
            await self._note_use(seen)
        return Caller(seen.key.owner, seen.key.account, seen.key.scopes, seen.key.limits, seen.key.id)

    def _digest_of(self, key: str) -> str:
        return digest_of(self.joining.secrets.pepper, key)

    async def _read(self, name: str) -> _Seen | None:
        async with self.gate.asking(), self.reader.pipeline(transaction=False) as pipe:
            pipe.hgetall(key_name(name))
            pipe.time()
            record, (seconds, microseconds) = await pipe.execute()
        key = StoredKey.from_record(record)
        if key is None:
            self._seen.pop(name, None)
            return None
        at = float(seconds) + float(microseconds) / 1e6
        self._seen[name] = _Seen(key, str(record["digest"]), at, time.monotonic())
        return self._seen[name]

    async def _note_use(self, seen: _Seen) -> None:
        self._seen[seen.key.id] = replace(seen, key=replace(seen.key, last_used_at=seen.now))
        async with self.gate.asking():
            with contextlib.suppress(redis.ResponseError):  # its memory is full, which must not lock anybody out
                await self.reader.hset(key_name(seen.key.id), "last_used_at", json.dumps(seen.now))
