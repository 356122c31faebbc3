"""Results on a local disk or a mounted volume: `file:///folder`."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from polyreel.errors import ConfigurationError, StorageAway, StorageFailed, StorageFull
from polyreel.settings import S3
from polyreel.storage import FOLDERS, JOB_FOLDERS, Storage, check_key, is_ours

#: What the system calls a storage that is full, and one that may be back later: a mounted volume whose server is away.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_AWAY = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT)


@dataclass(frozen=True, slots=True)
class HeldJob:
    """The files of one job: how many bytes, and when the newest was stored (seconds since the epoch)."""

    size_bytes: int
    newest_at: float


@dataclass(frozen=True, slots=True)
class Held:
    """What a storage holds: all of ours, and job by job; pictures may be several jobs'."""

    total_bytes: int
    jobs: dict[str, HeldJob]


@dataclass(frozen=True)
class LocalStorage:
    """Files under one folder; a file appears under its key complete or not at all."""

    folder: Path

    def path(self, key: str) -> Path:
        """Return where `key` lies; the file may not exist.

        Raises:
            StorageFailed: the key is not one of ours.
        """
        return self.folder / check_key(key)

    def put(self, source: Path, key: str) -> None:
        """Copy next to the target, flush to disk, then rename: a reader or a crash never sees half a file."""
        target = self.path(key)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as reader, part.open("xb") as writer:
                shutil.copyfileobj(reader, writer, 2**20)
                writer.flush()
                os.fsync(writer.fileno())
            part.replace(target)
            _sync_folder(target.parent)
        except OSError as err:
            with suppress(OSError):
                part.unlink()
            raise _failure("The result could not be stored", err) from err

    def size(self, key: str) -> int | None:
        """Return bytes, or None when there is no such file."""
        try:
            found = self._found(key).stat()
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def open(self, key: str) -> BinaryIO:
        """Open for reading."""
        try:
            return self._found(key).open("rb")
        except OSError as err:
            raise StorageFailed("No such file.") from err

    def _found(self, key: str) -> Path:
        """Return where `key` lies, if that is within the folder: a symbolic link in it leads nowhere else."""
        path = self.path(key)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise FileNotFoundError(key)
        return path

    def delete(self, key: str) -> None:
        """Remove the file if it is there."""
        if self.size(key) is not None:
            with suppress(FileNotFoundError):
                self.path(key).unlink()

    def delete_folder(self, folder: str) -> int:
        """Remove the folder with our files in it, drafts of killed writers among them; what is not ours stays."""
        removed = 0
        root = self.path(folder)
        for path in sorted(root.rglob("*"), reverse=True):  # what lies in a folder before the folder
            if is_ours(path.relative_to(self.folder).as_posix()):
                with suppress(OSError):  # another process removes too, or writes a newer file there
                    if path.is_dir() and not path.is_symlink():
                        path.rmdir()
                    else:
                        path.unlink()
                        removed += 1
        with suppress(OSError):
            root.rmdir()
        return removed

    def folders(self, folder: str, before: float) -> list[str]:
        """Return the names of old folders, empty ones among them."""
        found = []
        for path in (self.folder / folder).glob("*"):
            with suppress(OSError):  # another process has removed it meanwhile
                is_jobs = path.is_dir() and is_ours(path.relative_to(self.folder).as_posix())
                if is_jobs and max(inner.lstat().st_mtime for inner in (path, *path.rglob("*"))) < before:
                    found.append(path.name)
        return found

    def sweep(self, before: float) -> int:
        """Remove old files, drafts of killed writers among them, and the folders that are empty then."""
        removed = 0
        for path in self._older_than(before):
            with suppress(OSError):  # another process sweeps too, or a newer file lies in the folder
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
                    removed += 1
        return removed

    def _older_than(self, before: float) -> list[Path]:
        """Return our old files and folders, what lies in a folder before the folder.

        Only names that we make: the operator's folder may hold other things, which are not ours to remove. All ages
        are read first: removing a file makes its folder young.
        """
        old = []
        for path in chain.from_iterable((self.folder / name).rglob("*") for name in FOLDERS):
            with suppress(OSError):
                if is_ours(path.relative_to(self.folder).as_posix()) and path.lstat().st_mtime < before:
                    old.append(path)
        return sorted(old, reverse=True)

    def url(self, key: str, expires_at: float) -> str | None:
        """Return None: a disk has no web server, our `/files` route serves it."""
        return None

    def held(self) -> Held:
        """Return what lies here; a look at every file."""
        total, jobs = 0, dict[str, HeldJob]()
        for top in FOLDERS:
            for name, found in self._files(top):
                total += found.st_size
                if top in JOB_FOLDERS:
                    job_id = name.split("/")[1]
                    job = jobs.get(job_id, HeldJob(0, 0.0))
                    jobs[job_id] = HeldJob(job.size_bytes + found.st_size, max(job.newest_at, found.st_mtime))
        return Held(total, jobs)

    def _files(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        """Give our files under a folder of keys. By names, not paths: ten thousand jobs are looked at every minute."""
        with suppress(OSError), os.scandir(self.folder / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}"
                with suppress(OSError):  # it has gone meanwhile
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._files(name)
                    elif entry.is_file(follow_symlinks=False) and is_ours(name):
                        yield name, entry.stat(follow_symlinks=False)

    def free_bytes(self) -> int | None:
        """Return what the file system has left for us."""
        try:
            nearest = next(path for path in (self.folder, *self.folder.parents) if path.exists())
            return shutil.disk_usage(nearest).free
        except OSError as err:
            raise StorageAway(f"storage: the folder cannot be asked for its space: {err.strerror}.") from err

    def check(self) -> None:
        """Write, read back and remove a file beside the results."""
        probe = self.folder / f".probe-{uuid.uuid4().hex}"
        content = probe.name.encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with probe.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                read = probe.read_bytes()
            finally:
                probe.unlink(missing_ok=True)
        except OSError as err:
            raise _failure("storage: the folder of the results cannot be written", err) from err
        if read != content:
            raise StorageAway("storage: the folder of the results gives back something else than was written.")


def _failure(what: str, err: OSError) -> StorageFailed:
    """Return an error of the system as ours."""
    kind = StorageFull if err.errno in _FULL else StorageAway if err.errno in _AWAY else StorageFailed
    return kind(f"{what}: {err.strerror}.")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _LocalKind:
    name = "file"

    def connect(self, url: str, s3: S3) -> Storage:
        parts = urlsplit(url)
        folder = Path(unquote(parts.path))
        if parts.netloc or not folder.is_absolute():
            raise ConfigurationError(
                f"storage: {url!r} must name an absolute folder: file:///var/lib/polyreel/results."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise ConfigurationError(f"storage: the folder {folder} cannot be made: {err.strerror}.") from err
        return LocalStorage(folder)


STORAGE = _LocalKind()
