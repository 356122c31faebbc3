"""Records of older versions: how many there are, and bringing them up to date.

Nothing needs it: older records are read as they are, and go with their retention. It is for who wants to know before an
upgrade or a downgrade, and for jobs that are kept for long. Each record is one step (`lua/migrate.lua`), which changes
nothing that is written meanwhile, so the server may run, and whoever was interrupted goes on where he was.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from operator import eq, ge, lt
from typing import Any

import redis

from polyreel.errors import StorageFailed
from polyreel.job import SCHEMA, JobStatus
from polyreel.leases import Leases
from polyreel.records import job_key, parse
from polyreel.redis_copy import in_parts
from polyreel.scripts import arguments, script
from polyreel.settings import Settings
from polyreel.shared_secrets import FILES, KEYED_WITH, pepper_proof, redis_name
from polyreel.storage import Storage

#: Records that are read in one round trip.
_AT_ONCE = 200

#: Files of records that are looked for in the storage at most: one that has other folders shows it at once.
_MOST_LOOKED_FOR = 200

#: What the bounds of a requirement say.
_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {"==": eq, ">=": ge, "<": lt}

#: Oldest Redis with script flags, which `polyreel.scripts` needs; a Valkey says 7.2 or newer.
_OLDEST_REDIS = (7, 0)


@dataclass
class State:
    """What was found.

    Args:
        schema: version of the records that this code writes.
        records: version to how many records there are of it.
        newer: unfinished ones of versions newer than that; a newer polyreel runs, or ran.
        unreadable: ids of records that cannot be read; they are left alone.
        to_migrate: how many `migrate` would change.
        downgrade: older version of records to how many records a polyreel that writes those would not know:
            `unfinished` it does not run, `ended` it may not show.
        fits: what else has to fit (Redis, RQ, keys, storage) to "ok", or what is wrong with it.
    """

    schema: int = SCHEMA
    records: dict[int, int] = field(default_factory=dict)
    newer: int = 0
    unreadable: list[str] = field(default_factory=list)
    to_migrate: int = 0
    downgrade: dict[int, dict[str, int]] = field(default_factory=dict)
    fits: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 nothing to do, 1 something to migrate, 2 something that this version cannot deal with."""
        if self.newer or self.unreadable or any(said != "ok" for said in self.fits.values()):
            return 2
        return 1 if self.to_migrate else 0


def check(client: redis.Redis, settings: Settings, storage: Storage) -> State:
    """Look at everything, change nothing; blocks.

    Raises:
        redis.RedisError: Redis is away.
    """
    state, records, outputs = State(), Counter[int](), list[str]()
    unknown = {older: Counter[str]() for older in range(1, SCHEMA)}
    for job_id, record in all_records(client):
        schema = schema_of(record)
        records[schema] += 1
        is_over = record.get("status") in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)
        for older in range(1, min(schema, SCHEMA)):
            unknown[older]["ended" if is_over else "unfinished"] += 1
        if schema > SCHEMA:
            state.newer += not is_over
            continue
        try:
            stored = parse(record)
        except (ValueError, TypeError, KeyError):
            stored = None
        if stored is None:
            state.unreadable.append(job_id)
            continue
        state.to_migrate += schema < SCHEMA
        if len(outputs) < _MOST_LOOKED_FOR:
            outputs += [output.key for output in stored.job.outputs]
    state.records = dict(sorted(records.items()))
    state.downgrade = {older: {"unfinished": n["unfinished"], "ended": n["ended"]} for older, n in unknown.items()}
    state.fits = {
        "redis": _redis_fits(client),
        "rq": _rq_fits(),
        "keys": _keys_fit(client, settings),
        "storage": _storage_fits(storage, outputs),
    }
    return state


def migrate(client: redis.Redis, settings: Settings) -> int:
    """Bring the older records that can be read up to date; return how many were changed. Blocks.

    Raises:
        redis.RedisError: Redis is away; what was done so far is done.
    """
    # Jobs of version 1 lie in that version's one queue, and are moved to their models' by this.
    Leases(client, retention_s=settings.retention_s, lease_s=settings.lease_s).repair()
    step, changed = script(client, "migrate"), 0
    for job_id, record in all_records(client):
        if schema_of(record) >= SCHEMA:
            continue
        try:
            stored = parse(record)
        except (ValueError, TypeError, KeyError):
            stored = None
        if stored is None:
            continue
        request = stored.job.request
        pixels = request.num_frames * request.height * request.width
        fields = stored.job.to_record() | {"model": request.model, "pixels": str(pixels)}
        terms = {
            "id": job_id,
            "schema": record.get("schema", ""),
            "request": record["request"],
            "new_schema": str(SCHEMA),
            "new_request": json.dumps(request.to_dict()),
        }
        flat = [part for name, value in fields.items() if name not in record for part in (name, value)]
        changed += int(step(args=arguments(terms, *flat)))
    return changed


def all_records(client: redis.Redis) -> Iterator[tuple[str, dict[str, str]]]:
    """Give each job's id and record; one that is written or expires meanwhile may be missing."""
    prefix = job_key("")
    for keys in in_parts(client.scan_iter(match=f"{prefix}*", count=_AT_ONCE), _AT_ONCE):
        with client.pipeline(transaction=False) as pipe:
            for key in dict.fromkeys(keys):
                pipe.hgetall(key)
            for key, record in zip(dict.fromkeys(keys), pipe.execute(), strict=True):
                if record:
                    yield str(key).removeprefix(prefix), record


def schema_of(record: dict[str, str]) -> int:
    """Return a record's version; the first one did not say it."""
    return int(record.get("schema", 1))


def _redis_fits(client: redis.Redis) -> str:
    about: Any = client.info("server")  # Any: redis-py's loose type
    name = str(about.get("valkey_version") or about.get("redis_version", "0"))
    if _numbers(name) >= _OLDEST_REDIS:
        return "ok"
    return f"it is {name}; polyreel needs Redis {'.'.join(map(str, _OLDEST_REDIS))} or newer, or Valkey."


def _rq_fits() -> str:
    """RQ's own keys are written by our scripts, so its version is pinned."""
    try:
        wanted = next((line for line in requires("polyreel") or () if re.match(r"rq\b", line)), "").partition(";")[0]
        installed = version("rq")
    except PackageNotFoundError as err:
        return f"{err.name} is not installed."
    bounds = [(op, _numbers(text)) for op, text in re.findall(r"(>=|<|==)\s*([\w.]+)", wanted)]
    if all(_COMPARE[op](_numbers(installed)[: len(bound)], bound) for op, bound in bounds):
        return "ok"
    return f"rq {installed} is installed, and this polyreel writes what {wanted} reads: pip install '{wanted}'."


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _keys_fit(client: redis.Redis, settings: Settings) -> str:
    """Whether stored keys are good under the pepper that this server has; makes none."""
    made_under = client.get(KEYED_WITH)
    if not made_under:
        return "ok"
    shared, file = client.get(redis_name("pepper")), settings.state_dir / FILES["pepper"]
    if settings.key_pepper:
        pepper = settings.key_pepper.get_secret_value().encode()
    elif shared:
        pepper = base64.b64decode(str(shared))
    elif file.exists():
        pepper = file.read_bytes()
    else:
        return "the pepper that stored keys were made under is not here: set key_pepper, or start where they were made."
    if hmac.compare_digest(pepper_proof(pepper), str(made_under)):
        return "ok"
    return "stored keys were made under another pepper (key_pepper), so none of them is good."


def _storage_fits(storage: Storage, outputs: list[str]) -> str:
    """Whether the files of records lie where this version looks for them."""
    try:
        missing = [key for key in outputs if storage.size(key) is None]
    except StorageFailed as err:
        return err.message
    if not missing:
        return "ok"
    return f"{len(missing)} of {len(outputs)} results that were looked for are not there, such as {missing[0]}."
