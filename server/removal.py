"""Getting rid of a job: one that is unfinished is cancelled, one that has ended is forgotten with all its files.

The record goes first: with it every link to the files goes, in all processes. What of the files is not removed then,
because the storage is away, a worker's sweeper removes later (`workers.sweeper`).
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from starlette.concurrency import run_in_threadpool

from polyreel.errors import NotCancellable, StorageFailed
from polyreel.records import StoredJob
from polyreel.storage import JOB_FOLDERS
from server.services import Services

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of a job.

    Args:
        stored: the cancelled record, or the one that is gone.
        is_deleted: False when the job was cancelled, and its record stays.
    """

    stored: StoredJob
    is_deleted: bool


async def remove(shared: Services, job_id: str, owner: str) -> Removal:
    """Cancel a job of this owner that is unfinished, delete one that has ended.

    Args:
        job_id: uuid or number.

    Raises:
        UnknownJob: there is none, or it is somebody else's.
        NotCancellable: its file is being made already; try again in a moment.
        QueueUnavailable: Redis does not answer; whether it is gone, nobody knows.
    """
    stored = await shared.get(job_id, owner)
    if not stored.job.status.is_terminal:
        try:
            return Removal(await shared.cancel(stored.job.id, owner), is_deleted=False)
        except NotCancellable as err:
            if err.reason == "finishing":
                raise  # else it has ended this moment
    await shared.gate.in_thread(shared.queue.delete, stored.job.id)
    shared.published.forget(stored.job.id)
    for folder in JOB_FOLDERS:
        try:
            await run_in_threadpool(shared.storage.delete_folder, f"{folder}/{stored.job.id}")
        except StorageFailed as err:
            log.warning("files of a deleted job stay for now", job_id=stored.job.id, reason=err.message)
    return Removal(stored, is_deleted=True)
