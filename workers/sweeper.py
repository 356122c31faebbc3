"""Removes what nobody may fetch any more: results past their retention, and what killed workers left in scratch."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import structlog

from polyreel.storage import Storage

log = structlog.get_logger()

#: Seconds between two sweeps.
SWEEP_S = 3600.0

#: A result outlives its record and its links by this much, seconds: clocks differ, downloads take time.
GRACE_S = 3600.0

#: Anything younger in the scratch folder may belong to a worker that lives, seconds.
SCRATCH_S = 24 * 3600.0


class Sweeper:
    """Sweeps at start and every `SWEEP_S` seconds, from a thread of its own. Every worker may have one.

    Args:
        storage: of the results.
        retention_s: how long a finished job is kept, seconds.
        scratch: folder of files in the making.
    """

    def __init__(self, storage: Storage, retention_s: float, scratch: Path) -> None:
        self._storage = storage
        self._retention_s = retention_s
        self._scratch = scratch
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin sweeping."""
        self._thread.start()

    def stop(self) -> None:
        """End without waiting for a sweep in progress: it can be cut off anywhere."""
        self._stop.set()

    def sweep(self, now: float) -> int:
        """Remove what is too old at `now` (seconds since the epoch); return how many results went."""
        for leftover in self._scratch.glob("*"):
            with suppress(FileNotFoundError):  # another worker has just finished with it
                if now - leftover.stat().st_mtime > SCRATCH_S:
                    shutil.rmtree(leftover, ignore_errors=True)
        return self._storage.sweep(now - self._retention_s - GRACE_S)

    def _run(self) -> None:
        while True:
            try:
                removed = self.sweep(time.time())
                if removed:
                    log.info("old results removed", files=removed)
            except Exception as err:  # the thread must outlive any trouble with the storage
                log.warning("sweep failed", reason=str(err))
            if self._stop.wait(SWEEP_S):
                return
