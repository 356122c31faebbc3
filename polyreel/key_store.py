"""The API keys in Redis: made, listed, revoked and rotated by `polyreel keys`, read by every API process.

    polyreel:keys           sorted set of key ids by creation time
    polyreel:keys:pepper    which pepper their hashes are keyed with, as a hash of it (`polyreel.shared_secrets`)
    polyreel:key:{id}       hash, the fields of `StoredKey` and `digest`, the key's HMAC

A key's text is in none of them: it is shown once, when it is made. What was revoked stays listed, so that an id in an
old log can be told; it is good for nothing. All times are of Redis' clock.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import redis

from polyreel.audit import Actor, command_line, fields_of, say, write
from polyreel.errors import ConfigurationError
from polyreel.keys import USUAL_SCOPES, KeyLimits, Scope, digest_of, key_id, new_key
from polyreel.records import redis_errors
from polyreel.settings import Settings
from polyreel.shared_secrets import KEYED_WITH, pepper_proof, shared_secret

KEYS = "polyreel:keys"

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What is known of a key, its text excepted.

    Args:
        id: its 8 characters after `prk_`.
        owner: whose jobs it sees and makes.
        account: what its limits are counted by; the keys that follow one another by rotation have the same.
        scopes, limits: what it may do, and how much.
        created_at, expires_at, revoked_at, last_used_at: seconds since the epoch; 0.0 for never. The last is right to
            a minute.
    """

    id: str
    owner: str
    account: str
    scopes: frozenset[Scope] = USUAL_SCOPES
    limits: KeyLimits = field(default_factory=KeyLimits)
    created_at: float = 0.0
    expires_at: float = 0.0
    revoked_at: float = 0.0
    last_used_at: float = 0.0

    def state(self, now: float) -> str:
        """Return "active", "revoked" or "expired"."""
        if self.revoked_at:
            return "revoked"
        return "expired" if 0 < self.expires_at <= now else "active"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON (Any), as `polyreel keys --json` shows it."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return values | {"scopes": sorted(self.scopes), "limits": self.limits.to_dict()}

    def to_record(self) -> dict[Any, Any]:
        """Return the fields of the Redis hash; every value is text (Any: as redis-py types a hash)."""
        return {name: v if isinstance(v, str) else json.dumps(v) for name, v in self.to_dict().items()}

    @classmethod
    def from_record(cls, record: Mapping[Any, Any]) -> StoredKey | None:
        """Read a Redis hash back; None where there is no key in it. Any: see `to_record`."""
        if "digest" not in record:
            return None
        times = {name: float(record.get(name, 0)) for name in cls.__slots__ if name.endswith("_at")}
        # A scope that a newer version knows and this one does not allows nothing here.
        known = [scope for scope in get_args(Scope) if scope in json.loads(record["scopes"])]
        limits = KeyLimits.from_dict(json.loads(record["limits"]))
        return cls(record["id"], record["owner"], record["account"], frozenset(known), limits, **times)


def key_name(name: str) -> str:
    """Return the Redis key of an API key."""
    return f"polyreel:key:{name}"


def pepper_of(settings: Settings) -> bytes:
    """Return what the hashes of stored keys are keyed with.

    Raises:
        QueueUnavailable, ConfigurationError: as `shared_secret`.
    """
    if settings.key_pepper:
        return settings.key_pepper.get_secret_value().encode()
    return shared_secret(settings, "pepper")


class KeyStore:
    """Makes and changes keys. All calls block and may raise `QueueUnavailable`.

    Args:
        client: from `polyreel.records.connect`.
        pepper: from `pepper_of`.
        actor: who changes them, for the audit log.
    """

    def __init__(self, client: redis.Redis, pepper: bytes, actor: Actor | None = None) -> None:
        self._client, self._pepper = client, pepper
        self._actor = actor or command_line()

    def create(
        self,
        owner: str,
        scopes: Iterable[Scope] = USUAL_SCOPES,
        limits: KeyLimits | None = None,
        lasts_s: float | None = None,
    ) -> tuple[str, StoredKey]:
        """Make a key.

        Args:
            lasts_s: seconds until it expires, None for never.

        Returns:
            Its text, which nobody can learn again, and what is kept of it.

        Raises:
            ConfigurationError: no name for an owner, or the pepper is another than that of the other keys.
        """
        if not _OWNER.fullmatch(owner):
            raise ConfigurationError(
                "NAME must be 1 to 64 letters, digits and . _ @ -, beginning with a letter or a digit: the owner of "
                "the jobs that the key makes."
            )
        with redis_errors():
            now = self._now()
            text, name = _draw()
            key = StoredKey(name, owner, f"key:{name}", frozenset(scopes), limits or KeyLimits(), now)
            return text, self._write(text, key, now + lasts_s if lasts_s else 0.0, "keys.create", {})

    def all(self) -> list[StoredKey]:
        """Return all keys, the oldest first, what was revoked among them."""
        with redis_errors():
            return [key for name in self._client.zrange(KEYS, 0, -1) if (key := self._read(str(name)))]

    def has_usable(self) -> bool:
        """Return whether anybody can enter by a stored key.

        Raises:
            ConfigurationError: the pepper is another than theirs, so none of them is good here.
        """
        with redis_errors():
            now = self._now()
            self._check_pepper(may_set=False)
        return any(key.state(now) == "active" for key in self.all())

    def revoke(self, name: str) -> StoredKey:
        """End a key: within two seconds it is good nowhere. One that was revoked before stays as it was.

        Args:
            name: its id, or its whole text.

        Raises:
            ConfigurationError: there is none.
        """
        with redis_errors():
            key = self._known(name)
            noted = fields_of(self._actor, "keys.revoke", key.id, {"owner": key.owner})
            with self._client.pipeline(transaction=True) as pipe:
                pipe.hsetnx(key_name(key.id), "revoked_at", json.dumps(self._now()))
                write(pipe, noted)
                pipe.execute()
            say(noted)
            return self._known(key.id)

    def rotate(self, name: str, overlap_s: float) -> tuple[str, StoredKey]:
        """Make a key that follows another: of the same owner, account, scopes and limits, and for as long.

        Args:
            name: the id of the one before, or its text.
            overlap_s: seconds for which that one stays good, so that clients can change over.

        Returns:
            As `create`.

        Raises:
            ConfigurationError: there is none, it is not good any more, or the pepper is another.
        """
        with redis_errors():
            now = self._now()
            old = self._known(name)
            if old.state(now) != "active":
                raise ConfigurationError(f"The key {old.id} is {old.state(now)}; make a new one: polyreel keys create.")
            text, new_id = _draw()
            new = StoredKey(new_id, old.owner, old.account, old.scopes, old.limits, now)
            ends_at = min(filter(None, (old.expires_at, now + overlap_s)))
            expires_at = now + (old.expires_at - old.created_at) if old.expires_at else 0.0
            new = self._write(text, new, expires_at, "keys.rotate", {"from": old.id})
            self._client.hset(key_name(old.id), "expires_at", json.dumps(ends_at))
            return text, new

    def now(self) -> float:
        """Return the time that keys go by, seconds since the epoch."""
        with redis_errors():
            return self._now()

    def _now(self) -> float:
        seconds, microseconds = self._client.time()
        return float(seconds) + float(microseconds) / 1e6

    def _read(self, name: str) -> StoredKey | None:
        return StoredKey.from_record(self._client.hgetall(key_name(name)))

    def _known(self, name: str) -> StoredKey:
        found = self._read(key_id(name) or name)
        if found is None:
            raise ConfigurationError("No key has this id; `polyreel keys list` shows them all.")
        return found

    def _write(self, text: str, key: StoredKey, expires_at: float, action: str, detail: Mapping[str, str]) -> StoredKey:
        self._check_pepper(may_set=True)
        record = key.to_record() | {"digest": digest_of(self._pepper, text), "expires_at": json.dumps(expires_at)}
        del record["revoked_at"]  # there once it is, so that the first word stands
        granted = {"owner": key.owner, "scopes": " ".join(sorted(key.scopes)), **detail}
        noted = fields_of(self._actor, action, key.id, granted)
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hset(key_name(key.id), mapping=record)
            pipe.zadd(KEYS, {key.id: key.created_at})
            write(pipe, noted)
            pipe.execute()
        say(noted)
        return self._known(key.id)

    def _check_pepper(self, *, may_set: bool) -> None:
        """Two machines with peppers of their own would refuse each other's keys, and nobody could say why."""
        mine = pepper_proof(self._pepper)
        if may_set:
            self._client.set(KEYED_WITH, mine, nx=True)
        theirs = self._client.get(KEYED_WITH)
        if theirs is not None and not hmac.compare_digest(str(theirs), mine):
            raise ConfigurationError(
                "key_pepper: the keys in this Redis were made under another pepper, so they and new ones would not be "
                "good together. Set POLYREEL_KEY_PEPPER to the same text on all machines, or on none; keys that were "
                "made under another one are then made anew."
            )


def _draw() -> tuple[str, str]:
    """Return a new key's text and its id; 62^8 ids, so that none comes twice."""
    text = new_key()
    name = key_id(text)
    assert name is not None  # noqa: S101 it was made just now
    return text, name
