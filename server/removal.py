"""Getting rid of a job: one that is unfinished is cancelled, one that has ended is forgotten with all its files."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from polyreel.errors import NotCancellable
from polyreel.records import StoredJob
from polyreel.removal import remove_files
from server.services import Services


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
    pictures = await shared.gate.in_thread(shared.queue.forget, stored.job.id)
    shared.published.forget(stored.job.id)
    if pictures is not None:
        await run_in_threadpool(remove_files, shared.storage, stored.job.id, pictures)
    return Removal(stored, is_deleted=True)
