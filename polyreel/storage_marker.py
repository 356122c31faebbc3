"""That all processes of one server store into one and the same place: a mark in it, and the same mark in Redis.

    polyreel:storage       JSON: id, place, since, is_marked (`Known`)
    polyreel/storage-id    a file in the storage: the id

A folder of one machine's disk under `storage`, and a worker on another machine with a folder of the same name: every
job would succeed, and no video could be fetched. So each process that stores or serves results compares the two marks
when it starts, and one that has another place than the others does not start. A folder that machines share (NFS, a
volume) carries its mark to all of them, and so does a bucket.

The first process marks the place. An emptied Redis takes up the mark that it finds; what became of the videos of jobs
that it does not know, it leaves to their age. A place that is to be the new one is adopted: `polyreel storage adopt`.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import redis
import structlog

from polyreel.errors import ConfigurationError, StorageFailed
from polyreel.logs import redact
from polyreel.records import redis_errors
from polyreel.settings import Settings
from polyreel.storage import Storage

log = structlog.get_logger()

KNOWN = "polyreel:storage"

#: Key of the mark in the storage; no key of a result, so that no sweep takes it.
MARK = "polyreel/storage-id"

#: How long another process that marks the place at this moment is waited for, seconds.
WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Known:
    """What Redis knows of the storage.

    Args:
        id: the mark.
        place: its URL and the machine that marked it, for people.
        since: from when on this Redis knows every job that stores there, seconds since the epoch by its clock.
        is_marked: False while the process that is to mark it has not done so yet.
    """

    id: str
    place: str
    since: float
    is_marked: bool


def claim(client: redis.Redis, storage: Storage, settings: Settings, wait_s: float | None = None) -> None:
    """Compare the marks, and mark a place that is new; blocks.

    A storage that is away is compared at the next start: its jobs wait, and nothing is lost by going on.

    Args:
        wait_s: how long another machine's mark is waited for, seconds; None is `WAIT_S`.

    Raises:
        ConfigurationError: the storage is another than that of the other processes; says what to do.
        QueueUnavailable: Redis does not answer.
    """
    if not _is_shared(settings):
        return
    try:
        with redis_errors():
            _claim(client, storage, settings, WAIT_S if wait_s is None else wait_s)
    except StorageFailed as err:
        log.warning("whether this storage is that of the other processes cannot be told now", reason=err.message)


def adopt(client: redis.Redis, storage: Storage, settings: Settings) -> Known:
    """Make this storage the server's, whatever was before; blocks. Processes that have another one end at their start.

    Raises:
        ConfigurationError: it lies in the memory of one process.
        StorageFailed, QueueUnavailable: it cannot be marked, or Redis does not answer.
    """
    if not _is_shared(settings):
        raise ConfigurationError(f"storage: {settings.storage_url} is no place that processes could share.")
    with redis_errors():
        mark = mark_of(storage)
        known = Known(mark or uuid.uuid4().hex, place_of(settings), _now(client), is_marked=True)
        if mark is None:
            _put(storage, known.id)
        client.set(KNOWN, json.dumps(asdict(known)))
    return known


def known_of(client: redis.Redis) -> Known | None:
    """Return what Redis knows of the storage; None before the first start."""
    text = client.get(KNOWN)
    return Known(**json.loads(str(text))) if text else None


def mark_of(storage: Storage) -> str | None:
    """Return the mark that a storage carries, None for none; blocks.

    Raises:
        StorageFailed: the storage is away.
    """
    if storage.size(MARK) is None:
        return None
    with storage.open(MARK) as file:
        return file.read(64).decode("ascii", "replace").strip()


def place_of(settings: Settings) -> str:
    """Return in words where this process stores."""
    return f"{redact(settings.storage_url)} on {socket.gethostname()}"


def _claim(client: redis.Redis, storage: Storage, settings: Settings, wait_s: float) -> None:
    here, mark = place_of(settings), mark_of(storage)
    mine = Known(mark or uuid.uuid4().hex, here, _now(client), is_marked=mark is not None)
    if client.set(KNOWN, json.dumps(asdict(mine)), nx=True):
        if mark is None:
            try:
                _mark(client, storage, mine)
            except StorageFailed:  # or no other machine could ever have it
                _forget(client, mine)
                raise
        else:
            log.warning("this Redis knew of no storage and takes up the one that was marked before", place=here)
        return
    known = known_of(client)
    if known is None:  # whoever was first could not mark it
        _claim(client, storage, settings, wait_s)
        return
    mark = mark or mark_of(storage)  # the first of all has written it meanwhile
    deadline = time.monotonic() + wait_s
    while mark is None and time.monotonic() < deadline and known.place != here:
        time.sleep(0.1)  # or is about to, or another machine sees it a moment later
        mark = mark_of(storage)
        if known_of(client) is None:
            _claim(client, storage, settings, wait_s)
            return
    if mark == known.id:
        return
    # On one machine there is no other place that it could be: its folder was emptied, or the first one died marking it.
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    if mark is None and known.place == here and (url.startswith("unix://") or not known.is_marked):
        _mark(client, storage, known)
        return
    raise ConfigurationError(
        f"storage: the results of this server lie in {known.place}, and {here} is another place: "
        + ("it does not carry that one's mark" if mark is None else "it carries the mark of another server")
        + ". What is stored in one, nobody finds in the other. Let all machines have the same folder (a shared volume, "
        "NFS), or use a bucket (storage: s3://BUCKET/PREFIX). If results are to be here from now on: "
        "polyreel storage adopt."
    )


def _mark(client: redis.Redis, storage: Storage, known: Known) -> None:
    _put(storage, known.id)
    client.set(KNOWN, json.dumps(asdict(known) | {"is_marked": True}), xx=True)


def _forget(client: redis.Redis, mine: Known) -> None:
    """Take back what was said of a place, unless another has been adopted meanwhile."""
    with client.pipeline() as step, suppress(redis.WatchError):
        step.watch(KNOWN)  # type: ignore[no-untyped-call]
        if known_of(client) == mine:
            step.multi()
            step.delete(KNOWN)
            step.execute()


def _put(storage: Storage, mark: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mark")
        file.write_text(f"{mark}\n", "ascii")
        storage.put(file, MARK)


def _is_shared(settings: Settings) -> bool:
    return not settings.storage_url.startswith("memory:")


def _now(client: redis.Redis) -> float:
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1e6
