"""Results in this process's memory, `memory:`: for tests that run the API and the worker in one process."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from polyreel.errors import StorageFailed
from polyreel.settings import S3
from polyreel.storage import Storage, check_key


@dataclass(frozen=True)
class MemoryStorage:
    """A dictionary of files: key to the time of storing (seconds since the epoch) and the content."""

    files: dict[str, tuple[float, bytes]] = field(default_factory=dict)

    def put(self, source: Path, key: str) -> None:
        """Read the file whole and keep it."""
        check_key(key)
        try:
            self.files[key] = (time.time(), source.read_bytes())
        except OSError as err:
            raise StorageFailed(f"The result could not be stored: {err.strerror}.") from err

    def size(self, key: str) -> int | None:
        """Return bytes, or None when there is no such file."""
        stored = self.files.get(check_key(key))
        return None if stored is None else len(stored[1])

    def open(self, key: str) -> BinaryIO:
        """Open for reading."""
        try:
            return io.BytesIO(self.files[check_key(key)][1])
        except KeyError as err:
            raise StorageFailed("No such file.") from err

    def delete(self, key: str) -> None:
        """Remove the file if it is there."""
        self.files.pop(check_key(key), None)

    def delete_folder(self, folder: str) -> int:
        """Remove what lies under the folder."""
        inside = [key for key in self.files if key.startswith(check_key(folder) + "/")]
        for key in inside:
            self.delete(key)
        return len(inside)

    def folders(self, folder: str, before: float) -> list[str]:
        """Return the names of folders without a newer file."""
        newest: dict[str, float] = {}
        for key, (stored_at, _) in self.files.items():
            top, _, rest = key.partition("/")
            if top == folder and "/" in rest:
                name = rest.partition("/")[0]
                newest[name] = max(newest.get(name, stored_at), stored_at)
        return [name for name, stored_at in newest.items() if stored_at < before]

    def sweep(self, before: float) -> int:
        """Remove old files."""
        old = [key for key, (stored_at, _) in self.files.items() if stored_at < before]
        for key in old:
            self.delete(key)
        return len(old)

    def url(self, key: str, expires_at: float) -> str | None:
        """Return None: our `/files` route serves it."""
        return None

    def free_bytes(self) -> int | None:
        """Return None: nobody knows."""
        return None

    def check(self) -> None:
        """Do nothing: a dictionary is never away."""


class _MemoryKind:
    name = "memory"

    def connect(self, url: str, s3: S3) -> Storage:
        return MemoryStorage()


STORAGE = _MemoryKind()
