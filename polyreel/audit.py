"""What administrators did: a stream in Redis, the newest `KEPT` entries, read by `polyreel audit` and the native API.

    polyreel:audit   stream; an entry's id begins with its time, milliseconds since the epoch by Redis' clock

An entry says who did what with which key, model or storage, and through which request. It never holds a key's text, a
secret or a prompt. Where a change is one step in Redis, its entry is written in the same step, so there is no change
without one; else right after it.
"""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis
import structlog

from polyreel.errors import InvalidRequest

log = structlog.get_logger()

AUDIT = "polyreel:audit"

#: Entries that are kept, about: Redis drops the oldest when it is cheap to.
KEPT = 10_000

#: Longest part of an actor, a subject or a detail that is kept, characters.
_LONGEST = 200

_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does it.

    Args:
        name: the key's owner, or "command line (user)".
        key: id of the stored key, "" for another.
        request_id: of the request, as in the logs; "" at the command line.
        address: of the client, "" at the command line.
    """

    name: str
    key: str = ""
    request_id: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """What was done.

    Args:
        id: of the entry; the older, the smaller.
        at: seconds since the epoch by Redis' clock.
        actor: who did it.
        action: such as "keys.create" or "models.pin".
        subject: what it was done to: a key's id, a model, a storage.
        detail: what else is worth knowing, text by name.
    """

    id: str
    at: float
    actor: Actor
    action: str
    subject: str
    detail: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON (Any), as the command line and the API show it."""
        return {
            "id": self.id,
            "at": self.at,
            "actor": self.actor.name,
            "key": self.actor.key,
            "action": self.action,
            "subject": self.subject,
            "detail": self.detail,
            "request_id": self.actor.request_id,
            "address": self.actor.address,
        }


def command_line() -> Actor:
    """Return the actor at the command line: the user of the operating system."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = "unknown user"
    return Actor(f"command line ({user})")


def fields_of(
    actor: Actor | str, action: str, subject: str, detail: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Return an entry as the stream keeps it, for whoever writes it in a step of his own."""
    who = Actor(actor) if isinstance(actor, str) else actor
    values = {"actor": who.name, "action": action, "subject": subject}
    values |= {"key": who.key, "request_id": who.request_id, "address": who.address}
    if detail:
        values["detail"] = json.dumps({name: str(value)[:_LONGEST] for name, value in detail.items()})
    return {name: value if name == "detail" else value[:_LONGEST] for name, value in values.items() if value}


def write(client: redis.Redis, fields: Mapping[str, str]) -> None:
    """Write an entry from `fields_of`; `client` may be a pipeline."""
    entry: dict[Any, Any] = dict(fields)  # Any: as redis-py types a stream's entry
    client.xadd(AUDIT, entry, maxlen=KEPT, approximate=True)


def say(fields: Mapping[str, str]) -> None:
    """Log an entry that was written for a request; the command line has no log, it speaks to people."""
    if "request_id" in fields:
        told = {("key_id" if name == "key" else name): value for name, value in fields.items()}  # "key" is redacted
        log.info("audit", **told)


def note(
    client: redis.Redis,
    actor: Actor | str,
    action: str,
    subject: str,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Write down that something was done, and log it if a request asked for it; blocks.

    Args:
        actor: from `command_line` or `server.callers`.
        action: noun and verb, such as "backup.create".
        subject: what it was done to.
        detail: what else is worth knowing. No key's text, no secret, no prompt.
    """
    fields = fields_of(actor, action, subject, detail)
    write(client, fields)
    say(fields)


def entries(client: redis.Redis, limit: int, before: str = "") -> list[Entry]:
    """Return the newest entries first; blocks.

    Args:
        limit: 1 or more.
        before: id of an entry: only what is older; "" for all.

    Raises:
        InvalidRequest: `before` is no id of an entry.
    """
    if before and not _ID.fullmatch(before):
        raise InvalidRequest(f"before must be an entry's id, such as 1764028800000-0, got {before[:40]!r}", "before")
    found: Any = client.xrevrange(AUDIT, max=f"({before}" if before else "+", count=limit)  # Any: redis-py's loose type
    return [_entry(str(name), fields) for name, fields in found]


def _entry(name: str, fields: Mapping[str, str]) -> Entry:
    actor = Actor(*(fields.get(part, "") for part in ("actor", "key", "request_id", "address")))
    detail = json.loads(fields.get("detail", "{}"))
    at = int(name.partition("-")[0]) / 1000
    return Entry(name, at, actor, fields.get("action", ""), fields.get("subject", ""), detail)
