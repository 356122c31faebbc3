"""Where a running job's snapshots lie: one object per attempt, `run/<job id>/<fence>`, in the storage of the results.

An attempt writes under its own fence alone, so one that was given up for dead and lives cannot overwrite what its
successor saved. It starts from the newest snapshot of the attempts before it. What nobody deletes, because the job's
last worker died, the storage's sweep does.
"""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import structlog

from models._snapshot import is_whole
from polyreel.errors import StorageFailed
from polyreel.storage import Storage

log = structlog.get_logger()


class JobSnapshots:
    """The snapshots of one attempt at a job; see `models.Snapshots`.

    Reads what earlier attempts left when it is made, so it is made in a thread that may block.

    Args:
        storage: of the results.
        job_id: of the job.
        fence: of this attempt, 1 or more.
        every: denoising steps between two saves, 1 or more.
        scratch: folder on a local disk.
        resumes: False reads nothing: the video is made, and only `delete` is wanted.

    Attributes:
        state: the newest whole snapshot of an attempt before this one, None when there is none.
    """

    def __init__(
        self, storage: Storage, job_id: str, fence: int, *, every: int, scratch: Path, resumes: bool = True
    ) -> None:
        self.every = every
        self._storage = storage
        self._job_id = job_id
        self._fence = fence
        self._scratch = scratch
        self._failed = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
        self._waiting: Future[None] | None = None
        self._closed = False
        self._lock = threading.Lock()  # of the two above: a job may be given up while it saves
        self.state = self._newest() if resumes else None

    def save(self, state: bytes, step: int) -> None:
        """Store a snapshot in the place of this attempt's last one, in a thread; returns at once.

        While one is being stored, the newest of those that come waits and the others are dropped. A failure is logged
        once and costs the job nothing but a place to resume from. After `close` nothing is stored.
        """
        with self._lock:
            if self._closed:
                return
            if self._waiting is not None:
                self._waiting.cancel()
            self._waiting = self._writer.submit(self._put, state, step)

    def close(self, wait_s: float = 0.0) -> None:
        """Take nothing more. What waits is dropped, and what is being stored is not waited for.

        Args:
            wait_s: how long to wait for both before that, seconds.
        """
        with self._lock:
            self._closed = True
            waiting = self._waiting
        if wait_s and waiting is not None:
            wait([waiting], wait_s)
        with self._lock:
            self._writer.shutdown(wait=False, cancel_futures=True)

    def delete(self) -> None:
        """Close, and remove the snapshots of this attempt and of those before it: the job has ended.

        Waits for one that is being stored, which would lie there afterwards.
        """
        self.close()
        self._writer.shutdown(wait=True)
        for fence in range(1, self._fence + 1):
            try:
                self._storage.delete(self._key(fence))
            except StorageFailed as err:
                log.warning("snapshot not deleted", job=self._job_id, fence=fence, error=str(err))

    def _key(self, fence: int) -> str:
        return f"run/{self._job_id}/{fence}"

    def _newest(self) -> bytes | None:
        for fence in range(self._fence - 1, 0, -1):
            try:
                if self._storage.size(self._key(fence)) is None:
                    continue
                with self._storage.open(self._key(fence)) as file:
                    state = file.read()
            except (StorageFailed, OSError) as err:
                log.warning("snapshot not read", job=self._job_id, fence=fence, error=str(err))
                continue
            if is_whole(state):
                return state
            log.warning("snapshot is damaged", job=self._job_id, fence=fence)
        return None

    def _put(self, state: bytes, step: int) -> None:
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="snapshot-", dir=self._scratch) as folder:
                file = Path(folder, "snapshot")
                file.write_bytes(state)
                self._storage.put(file, self._key(self._fence))
        except Exception as err:  # whatever a backend raises: the job is worth more than its snapshot
            if not self._failed:
                log.warning("snapshot not saved", job=self._job_id, step=step, error=str(err))
            self._failed = True
