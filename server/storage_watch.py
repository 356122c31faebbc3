"""Whether results can be stored and how much room there is: told to operators, and asked before a job is taken.

Every look is made in a thread, one at a time, and remembered: nobody waits longer than is said here, also where a
storage hangs for ever.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import structlog
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from polyreel.errors import StorageAway, StorageFailed, StorageFull
from polyreel.storage import Storage

T = TypeVar("T")

log = structlog.get_logger()

#: For how long what was found is believed, seconds: each look writes a file, and may cost money. Asking for the free
#: space costs nothing, and many submits may come at once.
BELIEVED_S = 5.0
_SPACE_BELIEVED_S = 1.0

#: How long a storage may take, seconds; one that hangs is as good as none.
PATIENCE_S = 2.5
_SPACE_PATIENCE_S = 1.0

#: What clients are told; whose fault it is and what to do, `/ready` and the log say.
NO_SPACE = "There is no space for new results on this server right now. Try again later."
_AWAY = "The storage of the results does not answer right now. Try again in a few seconds."


@dataclass(frozen=True)
class StorageState:
    """What was found.

    Args:
        trouble: why nothing can be stored, for strangers; "" when all is well.
        free_bytes: None where there is no known end.
        is_up: whether a file was written and read back.
    """

    trouble: str
    free_bytes: int | None
    is_up: bool = True


class StorageWatch:
    """Looks at the storage of one process; for one event loop.

    Args:
        storage: of this server.
        state_dir: the folder whose disk must have space too; it need not be there yet.
        least_bytes: below this no new jobs are taken.
    """

    def __init__(self, storage: Storage, state_dir: Path, least_bytes: float) -> None:
        self._storage = storage
        self._state_dir = state_dir
        self._least_bytes = least_bytes
        self._works = _Remembered(self._check)
        self._space = _Remembered(self._free_bytes)
        self._told = ""

    async def state(self) -> StorageState:
        """Return what is known, looking anew where that is old."""
        found = await self._works.value(BELIEVED_S, PATIENCE_S)
        if found is None:
            found = StorageState("The storage of the results does not answer.", None, is_up=False)
        if found.trouble != self._told:
            say = log.warning if found.trouble else log.info
            say("storage is in trouble" if found.trouble else "storage is well again", reason=found.trouble)
            self._told = found.trouble
        return found

    async def need_space(self) -> None:
        """Let a job pass whose result there will be space for, as far as anybody knows.

        Raises:
            StorageFull: less than `least_bytes` are free.
        """
        free = await self._space.value(_SPACE_BELIEVED_S, _SPACE_PATIENCE_S)
        if free is not None and free < self._least_bytes:
            raise StorageFull(NO_SPACE)

    def _check(self) -> StorageState:
        try:
            self._storage.check()
        except StorageFailed as err:
            return StorageState(err.message, None, is_up=False)
        free = self._free_bytes()
        if free is not None and free < self._least_bytes:
            least_mb, free_mb = self._least_bytes / 1e6, free / 1e6
            return StorageState(f"Only {free_mb:.0f} MB are free, and min_free_mb is {least_mb:g}: no new jobs.", free)
        return StorageState("", free)

    def _free_bytes(self) -> int | None:
        """Return the smaller of what the storage and the state folder have left, None when nobody knows of either."""
        known: list[int | None] = []
        try:
            known.append(self._storage.free_bytes())
        except StorageFailed as err:  # whether it takes files, `check` tells
            log.debug("free space not known", reason=err.message)
        with suppress(OSError):
            folder = next(path for path in (self._state_dir, *self._state_dir.parents) if path.exists())
            known.append(shutil.disk_usage(folder).free)
        return min((free for free in known if free is not None), default=None)


class _Remembered(Generic[T]):
    """The newest answer of a call that blocks.

    Args:
        look: the call.
    """

    def __init__(self, look: Callable[[], T]) -> None:
        self._look = look
        self._found: T | None = None
        self._found_at = -math.inf
        self._task: asyncio.Task[T] | None = None

    async def value(self, believed_s: float, patience_s: float) -> T | None:
        """Return the answer, None when none came in time.

        Args:
            believed_s: for how long an answer is good, seconds.
            patience_s: how long to wait for a new one, seconds.
        """
        if time.monotonic() - self._found_at >= believed_s:
            task = self._task
            if task is None or task.done():  # one at a time, also where one hangs for ever
                task = self._task = asyncio.create_task(run_in_threadpool(self._look))
            # Meanwhile another request may begin the next look: what is awaited here is asked here.
            done, _ = await asyncio.wait({task}, timeout=patience_s)
            self._found, self._found_at = (task.result() if done else None), time.monotonic()
        return self._found


@contextmanager
def for_clients() -> Iterator[None]:
    """Say to clients of a storage's trouble what they can do about it, and nothing of settings."""
    try:
        yield
    except StorageFull as err:
        raise StorageFull(NO_SPACE) from err
    except StorageAway as err:
        raise StorageAway(_AWAY) from err


def watch_of(request: Request) -> StorageWatch:
    """Return the watch of the app that serves `request`."""
    found: StorageWatch = request.app.state.services.storage_watch
    return found
