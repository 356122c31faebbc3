"""Puts a backup back: into an empty Redis, an empty state folder and a storage, while no process of the server lives.

The archive is read twice: once to know that it is whole and holds nothing but what a backup holds, and only then to
write. Jobs that ran when it was made wait again at once, with no attempt charged. What has expired since is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import redis

from polyreel.backup import (
    COMPLETE,
    MANIFEST,
    RECORDS,
    RESULTS,
    SECRET_FILES,
    SECRETS,
    Manifest,
    is_job,
    manifest_of,
)
from polyreel.errors import ConfigurationError, StorageFailed
from polyreel.leases import Leases
from polyreel.records import connect, job_key
from polyreel.redis_copy import Entry, our_keys, parse_entry, remove_all, write_entries
from polyreel.secret_files import put_first
from polyreel.settings import Settings
from polyreel.storage import Storage, check_key
from polyreel.storage.local import LocalStorage
from polyreel.storage_marker import adopt

#: How Redis shows the connections of this command, which are not those of a server.
CLIENT_NAME = "polyreel-backup"

#: How long connections of processes that have just stopped may still be shown, seconds.
_LINGER_S = 3.0


@dataclass
class Restored:
    """What was put back.

    Args:
        manifest: of the archive.
        keys, expired: of Redis: written, and left out because their time was over.
        requeued: jobs that ran then and wait now.
        secrets: files of the state folder.
        files, files_bytes: results.
        verified, missing, damaged: outputs of succeeded jobs whose file has the digest of the record, is not there, or
            is another. Not looked at where the archive has no results.
    """

    manifest: Manifest
    keys: int = 0
    expired: int = 0
    requeued: int = 0
    secrets: list[str] = field(default_factory=list)
    files: int = 0
    files_bytes: int = 0
    verified: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def restore(path: Path, client: redis.Redis, storage: Storage, settings: Settings, *, force: bool = False) -> Restored:
    """Put an archive back.

    Args:
        client: from `polyreel.redis_copy.open_copier`, with `CLIENT_NAME`.
        settings: with the `redis_url` of `client`.
        force: remove first what Redis has, and replace secrets.

    Raises:
        ConfigurationError: the archive is damaged, foreign or too new; processes live; or there is something already,
            without `force`. Nothing was written then.
        StorageFailed: a result could not be stored; start again with `force`.
    """
    manifest = check_archive(path)
    check_nobody_lives(client)
    if not force:
        _check_empty(client, settings.state_dir, path)
    remove_all(client)
    done = Restored(manifest)
    digests: dict[str, str] = {}
    found: dict[str, str] = {}
    for name, file, member in _members(path):
        if name == RECORDS:
            done.keys, done.expired = write_entries(client, _noted(file, digests), _now_ms(client))
        elif name.startswith(SECRETS):
            _put_secret(settings.state_dir / name.removeprefix(SECRETS), file.read())
            done.secrets.append(name.removeprefix(SECRETS))
        elif name.startswith(RESULTS):
            key = name.removeprefix(RESULTS)
            found[key] = _put_result(storage, key, file, member.mtime)
            done.files += 1
            done.files_bytes += member.size
    done.requeued = _requeue(settings)
    with connect(_url(settings), patient=False) as plain:
        adopt(plain, storage, settings)
    if manifest.has_results:
        _verify(done, client, digests, found)
    return done


def check_archive(path: Path) -> Manifest:
    """Read an archive from its beginning to its end, write nothing, and return its manifest.

    Raises:
        ConfigurationError: it is damaged, foreign or too new.
    """
    manifest, digest, files, is_complete = None, "", 0, False
    with _readable(path):
        for name, file, _ in _members(path):
            if (name == MANIFEST) is not (manifest is None):
                raise ValueError(f"it does not begin with {MANIFEST}")
            if name == MANIFEST:
                manifest = manifest_of(json.load(file))
            elif name == RECORDS:
                digest = _digest_of(line for line in file if parse_entry(line))
            elif name == COMPLETE:
                is_complete = json.load(file) == {"files": files}
            else:
                files += name.startswith(RESULTS)
                while file.read(2**20):  # damage in what is compressed shows only now
                    pass
        if manifest is None or not is_complete:
            raise ValueError("it was cut off")
        if digest != manifest.digest:
            raise ValueError(f"{RECORDS} was changed")
    return manifest


def _digest_of(lines: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what reading an archive may raise into a sentence."""
    try:
        yield
    except OSError as err:
        raise ConfigurationError(f"{path} cannot be read: {err.strerror or err}.") from err
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as err:
        raise ConfigurationError(f"{path} is no whole backup of polyreel: {err}. Nothing was restored.") from err


def check_nobody_lives(client: redis.Redis) -> None:
    """Return when no process of a server is connected to this Redis.

    Raises:
        ConfigurationError: some are; says where.
    """
    deadline = time.monotonic() + _LINGER_S
    while True:
        others = [who for who in _connections(client) if who.get("name") != CLIENT_NAME]
        if not others:
            return
        if time.monotonic() > deadline:
            where = sorted({str(who.get("addr", "?")).rpartition(":")[0] or "this machine" for who in others})
            raise ConfigurationError(
                f"redis_url: {len(others)} connections of polyreel's processes are open (from {', '.join(where)}). "
                "Stop the API, the workers and the couriers on all machines first."
            )
        time.sleep(0.1)


def _connections(client: redis.Redis) -> list[dict[str, Any]]:
    """Return redis-py's connections to our database; an exporter or a redis-cli is none of the server's processes.

    Redis before 7.2 does not say whose library it is: there, every other connection counts.
    """
    own: Any = client.client_list()  # Any: redis-py's loose type, a dict of texts for each
    database = str(client.connection_pool.connection_kwargs.get("db") or 0)
    return [who for who in own if who.get("db") == database and who.get("lib-name", "redis-py").startswith("redis-py")]


def _check_empty(client: redis.Redis, state_dir: Path, path: Path) -> None:
    some = next(our_keys(client), None)
    if some is not None:
        raise ConfigurationError(
            f"redis_url: this Redis is not empty (it has {some}). Restore into an empty one; or with --force, which "
            "removes first all that polyreel has in it."
        )
    for name, file, _ in _members(path):
        if name.startswith(SECRETS):
            there = state_dir / name.removeprefix(SECRETS)
            if there.exists() and there.read_bytes() != file.read():
                raise ConfigurationError(
                    f"state_dir: {there} is another secret than that of the backup. Restore into another state folder; "
                    "or with --force, which replaces it."
                )


def _members(path: Path) -> Iterator[tuple[str, IO[bytes], tarfile.TarInfo]]:
    """Give name and content of each member in order; each is to be read before the next.

    Raises:
        ValueError: it has what no backup has.
        tarfile.TarError, EOFError, zlib.error, OSError: it is damaged.
    """
    with tarfile.open(path, "r:*") as archive:
        while (member := archive.next()) is not None:
            file = archive.extractfile(member) if _is_ours(member) else None
            if file is None:
                raise ValueError(f"it holds {member.name[:200]!r}, which none does")
            yield member.name, file, member
            archive.members.clear()  # type: ignore[attr-defined]  # or all their names stay in memory


def _is_ours(member: tarfile.TarInfo) -> bool:
    """Return whether a backup has such a member: a file, under a name that leads nowhere else."""
    name = member.name
    if not member.isreg():
        return False
    if name.startswith(RESULTS):
        try:
            check_key(name.removeprefix(RESULTS))
        except StorageFailed:
            return False
        return True
    return name in (MANIFEST, RECORDS, COMPLETE) or (
        name.startswith(SECRETS) and name.removeprefix(SECRETS) in SECRET_FILES
    )


def _noted(file: IO[bytes], digests: dict[str, str]) -> Iterator[Entry]:
    """Give the entries of a copy, and note what the files of succeeded jobs must be."""
    for line in file:
        entry = parse_entry(line)
        if is_job(entry) and entry["value"].get("status") == "succeeded":
            job_id = entry["key"].rpartition(":")[2]
            outputs = json.loads(entry["value"].get("outputs", "[]"))
            digests.update({output["key"]: f"{job_id} {output['sha256']}" for output in outputs})
        yield entry


def _put_secret(path: Path, content: bytes) -> None:
    if not put_first(path, content) and path.read_bytes() != content:  # `force`, or it would not have come so far
        path.unlink()
        put_first(path, content)


def _put_result(storage: Storage, key: str, file: IO[bytes], mtime: float) -> str:
    """Store a file, as old as it was; return its digest."""
    digest = hashlib.sha256()
    with _scratch() as draft:
        with draft.open("wb") as copy:
            while part := file.read(2**20):
                digest.update(part)
                copy.write(part)
        storage.put(draft, key)
    if isinstance(storage, LocalStorage):  # what is removed by age is by its own
        os.utime(storage.path(key), (mtime, mtime))
    return digest.hexdigest()


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = tempfile.mkdtemp()
    try:
        yield Path(folder, "result")
    finally:
        shutil.rmtree(folder)


def _requeue(settings: Settings) -> int:
    """Give all jobs that somebody had back to the queue, no attempt charged; bring together what fell apart."""
    with connect(_url(settings), patient=False) as client:
        leases = Leases(client, retention_s=settings.retention_s, lease_s=settings.lease_s)
        had = {client.hget(job_key(str(name)), "worker") for name in client.zrange("polyreel:leases", 0, -1)}
        back = {job for who in had if who for job in leases.expire_worker(str(who), counted=False)}
        leases.repair()
    return len(back)


def _verify(done: Restored, client: redis.Redis, digests: dict[str, str], found: dict[str, str]) -> None:
    for key, told in digests.items():
        job_id, _, digest = told.partition(" ")
        if found.get(key) == digest:
            done.verified += 1
        elif client.exists(job_key(job_id)):  # else it has expired, and its files go too
            (done.damaged if key in found else done.missing).append(key)


def _now_ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def _url(settings: Settings) -> str:
    assert settings.redis_url is not None  # noqa: S101 the caller's promise
    return settings.redis_url.get_secret_value()
