"""Which stored file a public key stands for: the published attempt's, as the job's record says.

What was published never changes, so it is remembered: files go on being served while Redis is away.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

from polyreel.errors import StorageFailed
from polyreel.job import JobStatus, VideoJob
from polyreel.records import StoredJob

_PUBLIC = re.compile(r"out/(?P<id>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})/(?P=id)\.[a-z0-9]+")

#: Jobs that are remembered; a hundred bytes or two each.
_MOST = 10_000


class Published:
    """Remembers the files of succeeded jobs; those asked for least recently are forgotten first.

    Args:
        most: jobs that are remembered.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._known: OrderedDict[str, Mapping[str, str]] = OrderedDict()

    async def storage_key(self, key: str, read: Callable[[str], Awaitable[StoredJob | None]]) -> str:
        """Return the key in the storage behind a public key.

        Args:
            read: returns a record by its id.

        Raises:
            StorageFailed: no job has published such a file (yet).
            QueueUnavailable: from `read`, for a job that is not remembered.
        """
        match = _PUBLIC.fullmatch(key)
        if match is None:
            raise StorageFailed("No such file.")
        job_id = match["id"]
        known = self._known.get(job_id)
        if known is None:
            stored = await read(job_id)
            if stored is None or stored.job.status is not JobStatus.SUCCEEDED:
                raise StorageFailed("No such file.")
            known = self._known[job_id] = published(stored.job)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(job_id)
        if key not in known:
            raise StorageFailed("No such file.")
        return known[key]


def published(job: VideoJob) -> dict[str, str]:
    """Return public key to key in the storage, for what a job has published; nothing before its success.

    Jobs of older versions stored under the public key itself, and their records say so.
    """
    return {key: output.key for key, output in zip(job.output_keys, job.outputs, strict=False)}
