"""Holds a local storage to `disk_quota_gb`: beyond it the oldest ended jobs go, whole, as `DELETE` removes them.

A job goes with its record, results, snapshots and pictures. Unfinished jobs never go, nor one that ended this minute,
whose client is about to fetch it: where these alone are more than the quota, it is exceeded, and the log says so. New
jobs are not refused for it; `min_free_mb` does that before the disk is full.

One worker of all looks, once a minute.
"""

from __future__ import annotations

import structlog

from polyreel.errors import ConfigurationError
from polyreel.job import JobStatus
from polyreel.records import Records, job_key
from polyreel.removal import remove_files
from polyreel.settings import Settings
from polyreel.storage import Storage
from polyreel.storage.local import LocalStorage

log = structlog.get_logger()

#: Seconds between two looks.
LOOK_S = 60.0

#: A job that ended less than this ago stays, seconds.
YOUNG_S = 60.0

#: Who of the workers looks, until it is time again.
_LOOKED = "polyreel:quota:looked"

#: Jobs that Redis is asked about in one call.
_CHUNK = 100


class Quota:
    """Removes what is beyond a quota.

    Args:
        storage: of the results.
        records: of the jobs.
        quota_bytes: that the storage holds at most.
    """

    def __init__(self, storage: LocalStorage, records: Records, quota_bytes: float) -> None:
        self._storage, self._records, self._quota_bytes = storage, records, quota_bytes
        self._is_exceeded = False

    def look(self) -> int:
        """Remove as many of the oldest ended jobs as it takes, unless another worker has just done so; blocks.

        Returns:
            How many jobs went.

        Raises:
            RedisError: Redis does not answer; the storage may hold more for a while.
        """
        client = self._records.client
        if not client.set(_LOOKED, "1", nx=True, px=int(1000 * LOOK_S * 0.9)):
            return 0
        held = self._storage.held()
        over = held.total_bytes - self._quota_bytes
        removed = freed = 0
        if over > 0:
            by_age = sorted(held.jobs, key=lambda job_id: held.jobs[job_id].newest_at)
            for i in range(0, len(by_age), _CHUNK):
                for job_id in self._ended(by_age[i : i + _CHUNK]):
                    if freed >= over:
                        break
                    pictures_bytes = self._remove(job_id)
                    if pictures_bytes is not None:
                        removed += 1
                        freed += held.jobs[job_id].size_bytes + pictures_bytes
        if removed:
            log.info("the oldest jobs went for disk_quota_gb", jobs=removed, bytes=freed)
        self._say_whether(freed < over)
        return removed

    def _ended(self, job_ids: list[str]) -> list[str]:
        """Return those that have ended a while ago, and those that have no record any more."""
        now, _ = self._records.client.time()
        with self._records.client.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(job_key(job_id), "status", "ended_at")
            found = pipeline.execute()
        return [
            job_id
            for job_id, (status, ended_at) in zip(job_ids, found, strict=True)
            if status is None or (JobStatus(status).is_terminal and float(ended_at or 0) < now - YOUNG_S)
        ]

    def _remove(self, job_id: str) -> int | None:
        """Return how many bytes went with its pictures, None for a job that stays."""
        pictures = self._records.forget(job_id)
        if pictures is None:
            return None
        pictures_bytes = sum(self._storage.size(key) or 0 for key in pictures)
        remove_files(self._storage, job_id, pictures)
        self._records.client.hincrby("polyreel:counts", "quota_removed", 1)
        return pictures_bytes

    def _say_whether(self, is_exceeded: bool) -> None:
        if is_exceeded and not self._is_exceeded:
            log.warning(
                "the storage holds more than disk_quota_gb, and no ended job is left that could go",
                quota_bytes=int(self._quota_bytes),
            )
        self._is_exceeded = is_exceeded


def quota_of(settings: Settings, storage: Storage, records: Records) -> Quota | None:
    """Return what holds the storage to the settings' quota, None where they set none.

    Raises:
        ConfigurationError: the storage is not local.
    """
    if settings.disk_quota_gb is None:
        return None
    if not isinstance(storage, LocalStorage):
        raise ConfigurationError(
            f"disk_quota_gb: {settings.storage_url.partition(':')[0]}: is not a local storage. Leave it out, and let "
            "a rule of the bucket's own limit it, or lower retention_s."
        )
    return Quota(storage, records, settings.disk_quota_gb * 1e9)
