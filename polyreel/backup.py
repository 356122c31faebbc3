"""A backup: one archive with the records, the secrets and the results, which `polyreel.restore` reads.

    manifest.json     what is in it, by whom and when (`Manifest`)
    redis.jsonl       all that is kept in Redis, see `polyreel.redis_copy`
    secrets/NAME      the files of the state folder that hold secrets
    results/KEY       the files of a local storage
    complete.json     how many of them: an archive without it was cut off

In this order, so that a reader needs no more than one file of it in memory. Whoever has the archive can read every
prompt, and sign links and keys: it is readable by its user alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import redis

from polyreel import __version__
from polyreel.errors import ConfigurationError
from polyreel.job import SCHEMA
from polyreel.redis_copy import Entry, read_entries
from polyreel.settings import Settings
from polyreel.shared_secrets import FILES
from polyreel.storage import FOLDERS, Storage
from polyreel.storage.local import LocalStorage

#: Version of the archive that this code writes, and the newest that it reads.
FORMAT = 1

MANIFEST, RECORDS, COMPLETE = "manifest.json", "redis.jsonl", "complete.json"
SECRETS, RESULTS = "secrets/", "results/"

#: Files of the state folder that are secrets: those that machines share, and the local key with its pepper.
SECRET_FILES = (*FILES.values(), "local-key.json", "local-pepper")

#: Settings whose secrets stand elsewhere, in the operator's own keeping.
_OWN_SECRETS = ("api_keys", "link_secret", "old_link_secrets", "key_pepper", "webhook_secrets")

_JOB = "polyreel:job:"


@dataclass(frozen=True)
class Manifest:
    """What an archive says of itself.

    Args:
        format: version of the archive.
        polyreel: version that made it.
        schema: the newest version of its records.
        made_at: when, ISO 8601 in UTC.
        keys: how many keys of Redis it has.
        digest: SHA-256 of `redis.jsonl`, hexadecimal.
        jobs: status to the number of jobs.
        has_results: whether the results' files are in it.
        results_in: where the results lie, without secrets.
    """

    format: int
    polyreel: str
    schema: int
    made_at: str
    keys: int
    digest: str
    jobs: dict[str, int]
    has_results: bool
    results_in: str


@dataclass
class Backup:
    """What was saved.

    Args:
        manifest: as in the archive.
        held_s: how long writes to Redis were held, seconds.
        files, files_bytes: results.
        secrets: names of the files of the state folder.
        bytes: of the archive.
        notes: what is not in it and has to be kept by other means.
    """

    manifest: Manifest
    held_s: float
    files: int = 0
    files_bytes: int = 0
    secrets: list[str] = field(default_factory=list)
    bytes: int = 0
    notes: list[str] = field(default_factory=list)


def back_up(path: Path, client: redis.Redis, storage: Storage, settings: Settings, *, results: bool = True) -> Backup:
    """Write an archive; the server may run.

    Redis is copied as it is at one moment, the files after that: of what is deleted meanwhile, the record is there and
    the file is not.

    Args:
        path: ends in `.tar` or `.tar.gz`; must not exist.
        client: from `polyreel.redis_copy.open_copier`.
        results: False leaves the results' files out.

    Raises:
        ConfigurationError: the path does not fit, or exists; or Redis does not let writes be held.
        redis.RedisError: Redis is away. There is no archive then.
    """
    compression = _compression_of(path)
    if path.exists():
        raise ConfigurationError(f"{path} exists; name a new file.")
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            with _archive(file, compression) as archive:
                done = _write(archive, path.parent, client, storage, settings, results)
            file.flush()
            os.fsync(file.fileno())
        done.bytes = draft.stat().st_size
        os.link(draft, path)  # unlike a rename, never over another's
    except OSError as err:
        raise ConfigurationError(f"{path} could not be written: {err.strerror or err}.") from err
    finally:
        draft.unlink(missing_ok=True)
    return done


def _compression_of(path: Path) -> str:
    if path.name.endswith((".tar.gz", ".tgz")):
        return "gz"
    if path.name.endswith(".tar"):
        return ""
    raise ConfigurationError(f"{path}: a backup's name ends in .tar.gz or .tar.")


def _archive(file: IO[bytes], compression: str) -> tarfile.TarFile:
    if compression:
        return tarfile.open(fileobj=file, mode="w:gz", compresslevel=1)  # videos are small already
    return tarfile.open(fileobj=file, mode="w:")


def _write(
    archive: tarfile.TarFile, folder: Path, client: redis.Redis, storage: Storage, settings: Settings, results: bool
) -> Backup:
    has_results = results and isinstance(storage, LocalStorage)
    with tempfile.TemporaryFile(dir=folder) as records:  # it has no name, and goes with this process
        began = time.monotonic()
        keys, jobs, schema, digest = _copy_records(client, records)
        manifest = Manifest(
            format=FORMAT,
            polyreel=__version__,
            schema=schema,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            keys=keys,
            digest=digest,
            jobs=dict(jobs),
            has_results=has_results,
            results_in=settings.storage_url,
        )
        done = Backup(manifest, held_s=round(time.monotonic() - began, 3))
        _add_text(archive, MANIFEST, json.dumps(asdict(manifest), indent=1))
        _add_file(archive, RECORDS, records, records.tell(), time.time())
    for name in SECRET_FILES:
        secret = settings.state_dir / name
        if secret.is_file():
            _add_path(archive, SECRETS + name, secret)
            done.secrets.append(name)
    if has_results:
        assert isinstance(storage, LocalStorage)  # noqa: S101 by `has_results`
        for key in _keys_of(storage):
            size = _add_path(archive, RESULTS + key, storage.path(key))
            if size is not None:
                done.files += 1
                done.files_bytes += size
    _add_text(archive, COMPLETE, json.dumps({"files": done.files}))
    done.notes += _notes(settings, storage, results)
    return done


def _copy_records(client: redis.Redis, file: IO[bytes]) -> tuple[int, Counter[str], int, str]:
    """Write a line for each key; return how many, the jobs by status, the newest schema, and the digest of it all."""
    keys, schema, jobs, digest = 0, 1, Counter[str](), hashlib.sha256()
    for entry in read_entries(client):
        line = json.dumps(entry).encode() + b"\n"
        file.write(line)
        digest.update(line)
        keys += 1
        if is_job(entry):
            jobs[str(entry["value"].get("status", "unknown"))] += 1
            schema = max(schema, schema_of(entry))
    return keys, jobs, schema, digest.hexdigest()


def is_job(entry: Entry) -> bool:
    """Return whether an entry is a job's record."""
    return str(entry["key"]).startswith(_JOB) and entry["type"] == "hash"


def schema_of(entry: Entry) -> int:
    """Return the version of a job's record: the first one did not say it."""
    return int(entry["value"].get("schema", 1))


def _notes(settings: Settings, storage: Storage, results: bool) -> list[str]:
    notes = []
    given = [name for name in _OWN_SECRETS if getattr(settings, name)]
    if given:
        notes.append(f"The secrets of the settings ({', '.join(given)}) are not in it: keep them with the settings.")
    if results and not isinstance(storage, LocalStorage):
        notes.append(
            f"The results are in {settings.storage_url} and not in it: keep them by the bucket's own means "
            "(versioning, replication, or a copy: aws s3 sync, rclone)."
        )
    return notes


def _keys_of(storage: LocalStorage) -> Iterator[str]:
    """Give the keys of all whole files, in order."""
    for folder in FOLDERS:
        for path in sorted((storage.folder / folder).rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                yield path.relative_to(storage.folder).as_posix()


def _add_path(archive: tarfile.TarFile, name: str, path: Path) -> int | None:
    """Add a file; return its length, or None where it has been deleted meanwhile."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        about = os.fstat(file.fileno())
        _add_file(archive, name, file, about.st_size, about.st_mtime)
    return about.st_size


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        _add_file(archive, name, file, file.tell(), time.time())


def _add_file(archive: tarfile.TarFile, name: str, file: IO[bytes], size: int, mtime: float) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, mtime, 0o600
    file.seek(0)
    archive.addfile(member, file)


def manifest_of(values: object) -> Manifest:
    """Read a manifest.

    Raises:
        ConfigurationError: it is none, or of a newer version.
    """
    known = values if isinstance(values, dict) else {}
    format = known.get("format")
    if not isinstance(format, int):
        raise ConfigurationError("This is no backup of polyreel: its manifest does not say which form it has.")
    if format > FORMAT or int(known.get("schema", 1)) > SCHEMA:
        raise ConfigurationError(
            f"This backup was made by polyreel {known.get('polyreel')}, whose records this version ({__version__}) "
            "does not know. Install that version or a newer one, and restore with it."
        )
    return Manifest(**{name: known[name] for name in Manifest.__dataclass_fields__})
