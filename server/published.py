"""Which stored file a public key stands for: the published attempt's, as the job's record says.

What was published never changes, so it is remembered: files go on being served while Redis is away. But a job can be
deleted, by another process too; so each record is looked for again, once a second while its files are asked for.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from polyreel.errors import QueueUnavailable, StorageFailed
from polyreel.job import JobStatus, VideoJob
from polyreel.records import StoredJob

_PUBLIC = re.compile(r"out/(?P<id>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})/(?P=id)\.[a-z0-9]+")

#: Jobs that are remembered; a hundred bytes or two each.
_MOST = 10_000

#: For how long a record is believed to be there, seconds; and after Redis was away, when nobody could delete it: a
#: player that asks for one range after the other is not to wait for Redis each time.
_FRESH_S, _AWAY_S = 1.0, 5.0


@dataclass(frozen=True, slots=True)
class _Known:
    """A job's files.

    Args:
        files: public key to key in the storage.
        kept_until: when they go, seconds since the epoch: holds also while Redis is away.
        good_until: by our clock; after that the record is looked for again.
    """

    files: Mapping[str, str]
    kept_until: float
    good_until: float


class Published:
    """Remembers the files of succeeded jobs; those asked for least recently are forgotten first.

    Args:
        retention_s: how long this server keeps any job, seconds.
        most: jobs that are remembered.
        clock: seconds that only rise (tests).
    """

    def __init__(self, retention_s: float, most: int = _MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._retention_s = retention_s
        self._most = most
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def storage_key(self, key: str, read: Callable[[str], Awaitable[StoredJob | None]]) -> str:
        """Return the key in the storage behind a public key.

        Args:
            read: returns a record by its id.

        Raises:
            StorageFailed: no job has published such a file (yet), or it is gone.
            QueueUnavailable: from `read`, for a job that is not remembered.
        """
        match = _PUBLIC.fullmatch(key)
        if match is None:
            raise StorageFailed("No such file.")
        known = await self._look_up(match["id"], read)
        if known is None or key not in known.files:
            raise StorageFailed("No such file.")
        return known.files[key]

    def forget(self, job_id: str) -> None:
        """Serve a job's files no more, from now on."""
        self._known.pop(job_id, None)

    async def _look_up(self, job_id: str, read: Callable[[str], Awaitable[StoredJob | None]]) -> _Known | None:
        known = self._known.get(job_id)
        if known is None or self._clock() > known.good_until:
            try:
                stored = await read(job_id)
            except QueueUnavailable:
                if known is None or known.kept_until < time.time():
                    raise
                self._known[job_id] = replace(known, good_until=self._clock() + _AWAY_S)
                return known
            if stored is None or stored.job.status is not JobStatus.SUCCEEDED:
                self.forget(job_id)
                return None
            kept_until = stored.job.kept_until(self._retention_s)
            known = self._known[job_id] = _Known(published(stored.job), kept_until, self._clock() + _FRESH_S)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        self._known.move_to_end(job_id)
        return known


def published(job: VideoJob) -> dict[str, str]:
    """Return public key to key in the storage, for what a job has published; nothing before its success.

    Jobs of older versions stored under the public key itself, and their records say so.
    """
    return {key: output.key for key, output in zip(job.output_keys, job.outputs, strict=False)}
