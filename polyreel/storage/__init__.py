"""Where finished files live: each module of this package serves one URL scheme.

A storage module publishes `STORAGE`, an object with the attributes of `StorageKind`. Keys are fixed at submit, made
by us and checked here, never taken from a request: `out/<uuid>/<uuid>.mp4`. Snapshots of running jobs lie beside them:
`run/<uuid>/<fence>`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from polyreel.discovery import discover
from polyreel.errors import ConfigurationError, StorageFailed, did_you_mean

_KEY = re.compile(r"[a-z0-9]+(/[a-z0-9][a-z0-9._-]*)+")

#: Folders of keys that hold a folder for each job.
JOB_FOLDERS = ("out", "run")


class Storage(Protocol):
    """Stores files under keys. Every method may block."""

    def put(self, source: Path, key: str) -> None:
        """Store the file at `source` under `key`, whole or not at all; an existing file is replaced.

        Raises:
            StorageFailed: disk full, backend away.
        """

    def size(self, key: str) -> int | None:
        """Return the file's length in bytes, or None when there is no such file."""

    def open(self, key: str) -> BinaryIO:
        """Return the file, seekable, opened for reading.

        Raises:
            StorageFailed: no such file.
        """

    def delete(self, key: str) -> None:
        """Remove the file; nothing happens when there is none."""

    def delete_folder(self, folder: str) -> int:
        """Remove every file under a folder of keys, such as "out/<uuid>"; return how many went.

        Raises:
            StorageFailed: backend away; some may have gone.
        """

    def folders(self, folder: str, before: float) -> list[str]:
        """Return the names of the folders in a folder of keys in which nothing was stored since `before`.

        Args:
            folder: "out", which holds a folder for each job, or "run".
            before: seconds since the epoch.
        """

    def sweep(self, before: float) -> int:
        """Remove what was stored before `before` (seconds since the epoch); return how many files went.

        A backend that expires objects by itself does nothing. Running it in several processes at once is harmless.
        """

    def url(self, key: str, expires_at: float) -> str | None:
        """Return the backend's own public link, or None when our `/files` route is to serve the file.

        Args:
            expires_at: seconds since the epoch.
        """


class StorageKind(Protocol):
    """Opens storages of one URL scheme.

    Attributes:
        name: the scheme, e.g. "file".
    """

    name: str

    def connect(self, url: str) -> Storage:
        """Return the storage that `url` names.

        Raises:
            ConfigurationError: the URL is not usable.
        """


@cache
def storage_kinds() -> dict[str, StorageKind]:
    """Return every kind of storage by scheme."""
    return discover("polyreel.storage", "STORAGE")


def connect_storage(url: str) -> Storage:
    """Return the storage for a URL such as "file:///var/lib/polyreel/results".

    Raises:
        ConfigurationError: unknown scheme (names the known ones), or the kind refuses the URL.
    """
    scheme = urlsplit(url).scheme
    kind = storage_kinds().get(scheme)
    if kind is None:
        known = ", ".join(f"{name}:" for name in storage_kinds())
        raise ConfigurationError(
            f"storage: {scheme or 'a URL without a scheme'} is not a storage.{did_you_mean(scheme, storage_kinds())} "
            f"Known: {known} for example file:///var/lib/polyreel/results."
        )
    return kind.connect(url)


def check_key(key: str) -> str:
    """Return `key` if it is one that we make.

    Raises:
        StorageFailed: anything else, `..` and absolute paths among it.
    """
    if not _KEY.fullmatch(key) or ".." in key:
        raise StorageFailed("No such file.")
    return key
