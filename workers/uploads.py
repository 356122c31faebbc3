"""Stores files that the storage did not take at once: one after the other, in a thread, with growing pauses.

Their jobs stay `uploading` and leased meanwhile, and the worker goes on with others: for a minute and for so many
videos. After that it takes no work until the storage takes files again, so what waits in the queue goes on waiting,
and neither the disk nor the GPU is spent on videos that nobody can have.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from polyreel.errors import StorageAway, StorageFailed

T = TypeVar("T")

log = structlog.get_logger()

#: Pauses between two tries, seconds: doubled from the first to the longest. A storage that hangs adds 10 s to each.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0

#: For how long a storage may be away while its worker takes further work, seconds, and how many videos may wait.
PATIENCE_S = 60.0
MOST_WAITING = 16


class Uploads(Generic[T]):
    """Videos whose files are in the spool. Safe to use from several threads.

    Args:
        store: stores the files of one and publishes them.
        end: told of one that has come to its end, with what went wrong or None.
        check: asks the storage whether it works, while nothing waits.
        spool_s: how long each is tried, seconds.
    """

    def __init__(
        self,
        store: Callable[[T], None],
        end: Callable[[T, Exception | None], None],
        check: Callable[[], None],
        spool_s: float,
    ) -> None:
        self._store = store
        self._end = end
        self._check = check
        self._spool_s = spool_s
        self._waiting: deque[tuple[T, float]] = deque()
        self._away_since: float | None = None
        self._why: StorageFailed = StorageAway("")
        self._changed = threading.Condition()
        self._is_over = False
        self._is_running = False

    @property
    def is_away(self) -> bool:
        """True from a failure of the storage until it has worked again."""
        return self._away_since is not None

    @property
    def takes_more(self) -> bool:
        """False when no further video should be begun."""
        with self._changed:
            since = self._away_since
            return since is None or (time.monotonic() - since < PATIENCE_S and len(self._waiting) < MOST_WAITING)

    def add(self, made: T, why: StorageFailed) -> None:
        """Take over one that the storage did not take now, or would not take behind those that wait."""
        with self._changed:
            self._waiting.append((made, time.monotonic() + self._spool_s))
            self._note(why)

    def note(self, why: StorageFailed) -> None:
        """Say that the storage does not work, though nothing waits for it: no video should be begun until it does."""
        with self._changed:
            self._note(why)
            self._away_since = time.monotonic() - PATIENCE_S

    @property
    def why(self) -> StorageFailed:
        """What went wrong last."""
        return self._why

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing waits; False when that takes longer."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:  # in slices: a signal is handled between them
            with self._changed:
                if not self._waiting or self._changed.wait_for(lambda: not self._waiting, 0.2):
                    return True
        return not self._waiting

    def give_up(self) -> None:
        """Try no more: the jobs are being given back, and their files stay in the spool."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _note(self, why: StorageFailed) -> None:
        self._why = why
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("storage is away", reason=why.message)
        if not self._is_running and not self._is_over:
            self._is_running = True
            threading.Thread(target=self._run, name="uploads", daemon=True).start()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            with self._changed:
                deadline = self._waiting[0][1] if self._waiting else None
                left_s = pause_s if deadline is None else min(pause_s, max(0.0, deadline - time.monotonic()))
                self._changed.wait_for(lambda: self._is_over, left_s)
                if self._is_over or (not self._waiting and self._away_since is None):
                    self._is_running = False
                    return
                head = self._waiting[0] if self._waiting else None
            works = self._try(head) if head else self._probe()
            pause_s = 0.0 if works else min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)

    def _try(self, head: tuple[T, float]) -> bool:
        """Try the one that has waited longest; return whether the next may be tried at once."""
        made, deadline = head
        trouble: Exception | None = None
        try:
            self._store(made)
        except StorageAway as err:
            with self._changed:
                self._note(err)  # anew, where the one before was stored
            if self._is_over or time.monotonic() < deadline:
                return False
            trouble = err
        except Exception as err:
            trouble = err
        self._end(made, trouble)
        if not isinstance(trouble, StorageFailed):
            self._is_back()
        with self._changed:  # last: whoever waits for that may end this process
            self._waiting.popleft()
            self._changed.notify_all()
        return True

    def _probe(self) -> bool:
        try:
            self._check()
        except StorageFailed as err:
            self._why = err
            return False
        self._is_back()
        return True

    def _is_back(self) -> None:
        with self._changed:
            if self._away_since is not None:
                log.info("storage is back")
            self._away_since = None
