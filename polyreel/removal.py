"""Getting rid of a job that has ended, with all that was made and sent for it.

The record goes first: with it every link to the files goes, in all processes. What of the files is not removed then,
because the storage is away, a worker's sweeper removes later (`workers.sweeper`).
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from polyreel.errors import StorageFailed
from polyreel.storage import JOB_FOLDERS, Storage

log = structlog.get_logger()


def remove_files(storage: Storage, job_id: str, pictures: Sequence[str]) -> None:
    """Remove the results and snapshots of a job that has no record any more, and pictures; blocks.

    Args:
        pictures: keys in the storage, from `Records.forget`.
    """
    for folder in JOB_FOLDERS:
        try:
            storage.delete_folder(f"{folder}/{job_id}")
        except StorageFailed as err:
            log.warning("files of a deleted job stay for now", job_id=job_id, reason=err.message)
    remove_pictures(storage, pictures)


def remove_pictures(storage: Storage, pictures: Sequence[str]) -> int:
    """Remove pictures that no job uses any more; blocks. Return how many went; the others go by their age."""
    removed = 0
    for key in pictures:
        try:
            storage.delete(key)
            removed += 1
        except StorageFailed as err:
            log.warning("a picture that no job uses stays until its retention is over", key=key, reason=err.message)
    return removed
