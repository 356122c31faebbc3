"""Where finished files live: each module of this package serves one URL scheme.

A storage module publishes `STORAGE`, an object with the attributes of `StorageKind`. Keys are fixed at submit, made
by us and checked here, never taken from a request: `out/<uuid>/<uuid>.mp4`. Snapshots of running jobs lie beside them:
`run/<uuid>/<fence>`, and pictures under their digest: `in/<sha256>`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from polyreel.discovery import discover
from polyreel.errors import ConfigurationError, StorageFailed, did_you_mean
from polyreel.settings import S3

_KEY = re.compile(r"[a-z0-9]+(/[a-z0-9][a-z0-9._-]*)+")

#: Folders of keys that hold a folder for each job.
JOB_FOLDERS = ("out", "run")

#: Everything that we store lies in one of these.
FOLDERS = ("in", *JOB_FOLDERS)

#: What `put` makes under `polyreel.job.new_job`'s keys: a folder per job, the files called after it, and their drafts.
_RESULTS = (
    r"out/(?P<id>[0-9a-f-]+)"
    r"(/(\d+/)?(?P=id)\.[a-z0-9]+|/(\d+/)?\.(?P=id)\.[a-z0-9]+\.[0-9a-f]{32}\.part|/\d+)?"
)

#: And under the keys of snapshots: a folder per job, a file per attempt, and their drafts.
_SNAPSHOTS = r"run/[0-9a-f-]+(/[0-9]+|/\.[0-9]+\.[0-9a-f]{32}\.part)?"

#: And under those of pictures, which are called after their digest.
_PICTURES = r"in/([0-9a-f]{64}|\.[0-9a-f]{64}\.[0-9a-f]{32}\.part)"

_OURS = re.compile(f"{_RESULTS}|{_SNAPSHOTS}|{_PICTURES}")


class Storage(Protocol):
    """Stores files under keys. Every method may block."""

    def put(self, source: Path, key: str) -> None:
        """Store the file at `source` under `key`, whole or not at all; an existing file is replaced.

        Raises:
            StorageFull: no space is left; nothing of the file stays.
            StorageAway: the backend does not take it now; the same may succeed later.
            StorageFailed: it will not succeed as it is.
        """

    def size(self, key: str) -> int | None:
        """Return the file's length in bytes, or None when there is no such file.

        Raises:
            StorageAway: the backend does not say.
        """

    def open(self, key: str) -> BinaryIO:
        """Return the file, seekable, opened for reading.

        Raises:
            StorageFailed: no such file; `StorageAway` where the backend does not say, also from a later read.
        """

    def delete(self, key: str) -> None:
        """Remove the file; nothing happens when there is none.

        Raises:
            StorageAway: the backend does not answer.
        """

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

        The file is not looked for: a link to none leads to the backend's own refusal.

        Args:
            expires_at: seconds since the epoch.

        Raises:
            StorageAway: whoever gives the credentials to sign it with does not answer.
        """

    def free_bytes(self) -> int | None:
        """Return the bytes that may still be stored, None where there is no such limit or nobody knows.

        Raises:
            StorageAway: the backend does not say.
        """

    def check(self) -> None:
        """Write, read back and remove a small file.

        Raises:
            StorageFailed: `StorageFull`, or `StorageAway`, whose message names the setting that is wrong, if one is. It
                is fit for strangers: no folder, address or bucket stands in it; those are in the log.
        """


class StorageKind(Protocol):
    """Opens storages of one URL scheme.

    Attributes:
        name: the scheme, e.g. "file".
    """

    name: str

    def connect(self, url: str, s3: S3) -> Storage:
        """Return the storage that `url` names; a backend that is away is no error yet.

        Args:
            s3: for kinds that speak S3.

        Raises:
            ConfigurationError: the URL is not usable.
        """


@cache
def storage_kinds() -> dict[str, StorageKind]:
    """Return every kind of storage by scheme."""
    return discover("polyreel.storage", "STORAGE")


def connect_storage(url: str, s3: S3 | None = None) -> Storage:
    """Return the storage for a URL such as "file:///var/lib/polyreel/results".

    Args:
        url: `Settings.storage_url`.
        s3: `Settings.s3`.

    Raises:
        ConfigurationError: unknown scheme (names the known ones), or the kind refuses the URL.
    """
    scheme = urlsplit(url).scheme
    kind = storage_kinds().get(scheme)
    if kind is None:
        known = ", ".join(f"{name}:" for name in storage_kinds())
        raise ConfigurationError(
            f"storage: {scheme or repr(url)} is not a storage.{did_you_mean(scheme, storage_kinds())} "
            f"Known: {known} for example file:///var/lib/polyreel/results."
        )
    return kind.connect(url, s3 or S3())


def check_key(key: str) -> str:
    """Return `key` if it is one that we make.

    Raises:
        StorageFailed: anything else, `..` and absolute paths among it.
    """
    if not _KEY.fullmatch(key) or ".." in key:
        raise StorageFailed("No such file.")
    return key


def is_ours(name: str) -> bool:
    """Return whether a name within a storage is one that we make: others are somebody's, and not ours to remove."""
    return _OURS.fullmatch(name) is not None
