"""Removes what nobody may fetch any more.

Results past their retention; the files of jobs whose record has gone before, because it was deleted or was to be kept
only briefly; what killed workers left in scratch and in the spool. A results folder belongs to one Redis: what another
one's jobs had made would be taken for forgotten. So nothing is removed from a place that carries another mark than
Redis knows (`polyreel.storage_marker`), and what was stored before this Redis knew the place goes by its age alone.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import redis
import structlog

from polyreel.job import JobStatus
from polyreel.records import PICTURES, Records, job_key
from polyreel.removal import remove_pictures
from polyreel.storage import JOB_FOLDERS, Storage
from polyreel.storage_marker import Known, known_of, mark_of
from workers.quota import LOOK_S, Quota
from workers.spool import spool_beside

log = structlog.get_logger()

#: Seconds between two sweeps.
SWEEP_S = 3600.0

#: A result outlives its record and its links by this much, seconds: clocks differ, downloads take time.
GRACE_S = 3600.0

#: Jobs that Redis is asked about in one call.
_CHUNK = 500

#: Anything younger in the scratch folder may belong to a worker that lives, seconds.
SCRATCH_S = 24 * 3600.0


class Sweeper:
    """Sweeps at start and every `SWEEP_S` seconds, from a thread of its own. Every worker may have one.

    Args:
        storage: of the results.
        retention_s: how long a finished job is kept, seconds.
        scratch: folder of files in the making.
        client: of the Redis that holds the records.
        quota: looks once a minute too; None for no quota.
        claim: called where Redis does not know the storage: it was emptied, or the storage was away at the start.
    """

    def __init__(
        self,
        storage: Storage,
        retention_s: float,
        scratch: Path,
        client: redis.Redis,
        quota: Quota | None = None,
        claim: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage = storage
        self._quota = quota
        self._claim = claim
        self._client = client
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
        spool_beside(self._scratch).sweep(self._are_over)
        known = known_of(self._client)
        if known is None:
            self._claim()
            known = known_of(self._client)
        if not self._is_ours(known):
            return 0
        removed = self._storage.sweep(now - self._retention_s - GRACE_S)
        if known:  # else nobody knows whose jobs those are
            removed += sum(self._sweep_forgotten(folder, known.since, now) for folder in JOB_FOLDERS)
        for key in Records(self._client, self._retention_s).unused_pictures(_CHUNK):
            if not self._client.sismember(PICTURES, key):  # removing the others takes time: a job may use it by now
                removed += remove_pictures(self._storage, [key])
        return removed

    def _sweep_forgotten(self, folder: str, since: float, now: float) -> int:
        stored_before = set(self._storage.folders(folder, since))
        names = [name for name in self._storage.folders(folder, now - GRACE_S) if name not in stored_before]
        return sum(self._remove_forgotten(folder, names[i : i + _CHUNK]) for i in range(0, len(names), _CHUNK))

    def _is_ours(self, known: Known | None) -> bool:
        if known is None or mark_of(self._storage) in (known.id, None):
            return True
        log.warning("the storage carries another server's mark; nothing in it is removed", expected=known.place)
        return False

    def _are_over(self, job_ids: Sequence[str]) -> list[bool]:
        """Say of jobs whether each has ended, or is gone."""
        pipeline = self._client.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hget(job_key(job_id), "status")
        return [status is None or JobStatus(status).is_terminal for status in pipeline.execute()]

    def _remove_forgotten(self, folder: str, job_ids: list[str]) -> int:
        """Remove the files of those jobs that have no record; return how many went.

        An unfinished job always has one, and one that ends meanwhile has one too.
        """
        pipeline = self._client.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.exists(job_key(job_id))
        known = pipeline.execute()
        return sum(
            self._storage.delete_folder(f"{folder}/{job_id}")
            for job_id, is_known in zip(job_ids, known, strict=True)
            if not is_known
        )

    def _run(self) -> None:
        sweep_at = time.monotonic()
        while True:
            try:
                if time.monotonic() >= sweep_at:
                    sweep_at += SWEEP_S
                    if removed := self.sweep(time.time()):
                        log.info("old results removed", files=removed)
                if self._quota and self._is_ours(known_of(self._client)):
                    self._quota.look()
            except Exception as err:  # the thread must outlive any trouble with the storage
                log.warning("sweep failed", reason=str(err))
            if self._stop.wait(LOOK_S if self._quota else SWEEP_S):
                return
