"""Whether results can be stored and how much room there is; what operators are told by `/ready` and `/metrics`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import structlog
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from polyreel.errors import StorageFailed
from polyreel.storage import Storage

log = structlog.get_logger()

#: For how long what was found is believed, seconds: each look writes a file, and may cost money.
BELIEVED_S = 15.0

#: How long a storage may take, seconds; one that hangs is as good as none.
PATIENCE_S = 5.0


@dataclass(frozen=True)
class StorageState:
    """What was found.

    Args:
        trouble: why nothing can be stored, for strangers; "" when all is well.
        free_bytes: None where there is no known end.
    """

    trouble: str
    free_bytes: int | None

    @property
    def is_up(self) -> bool:
        """Whether a file was written and read back."""
        return self.trouble == ""


class StorageWatch:
    """Looks at the storage of one process, not more often than `BELIEVED_S`; for one event loop.

    Args:
        storage: of this server.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._found: StorageState | None = None
        self._found_at = 0.0
        self._look: asyncio.Task[StorageState] | None = None

    async def state(self) -> StorageState:
        """Return what is known, looking anew where that is old."""
        if self._found is None or time.monotonic() - self._found_at >= BELIEVED_S:
            if self._look is None or self._look.done():  # one at a time, also where one hangs for ever
                self._look = asyncio.create_task(run_in_threadpool(self._check))
            done, _ = await asyncio.wait({self._look}, timeout=PATIENCE_S)
            self._note(self._look.result() if done else StorageState("The storage does not answer.", None))
        assert self._found is not None  # noqa: S101 it has just been noted
        return self._found

    def _check(self) -> StorageState:
        try:
            self._storage.check()
            return StorageState("", self._storage.free_bytes())
        except StorageFailed as err:
            return StorageState(err.message, None)

    def _note(self, found: StorageState) -> None:
        if self._found is not None and found.is_up != self._found.is_up:
            say = log.info if found.is_up else log.warning
            say("storage is back" if found.is_up else "storage is away", reason=found.trouble)
        self._found, self._found_at = found, time.monotonic()


def watch_of(request: Request) -> StorageWatch:
    """Return the watch of the app that serves `request`."""
    found: StorageWatch = request.app.state.storage_watch
    return found
