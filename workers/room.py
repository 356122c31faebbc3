"""Whether there is space for another video: asked before a job is claimed, so that none is made for nothing.

What waits in the queue goes on waiting while there is none.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import structlog

from polyreel.errors import StorageFailed
from polyreel.storage import Storage

log = structlog.get_logger()

#: For how long an answer is believed, seconds: an idle worker asks ten times as often.
_BELIEVED_S = 1.0


class Room:
    """The free space of a storage and of a folder on this machine.

    Args:
        storage: of the results.
        folder: where files are made; it need not be there yet.
        least_bytes: what must be free in both.
    """

    def __init__(self, storage: Storage, folder: Path, least_bytes: float) -> None:
        self._storage = storage
        self._folder = folder
        self._least_bytes = least_bytes
        self._asked_at = -_BELIEVED_S
        self._is_there = True

    @property
    def is_there(self) -> bool:
        """True while a video more will fit, as far as anybody knows."""
        now = time.monotonic()
        if now - self._asked_at >= _BELIEVED_S:
            self._asked_at = now
            free = self._free_bytes()
            is_there = free is None or free >= self._least_bytes
            if is_there is not self._is_there:
                say = log.info if is_there else log.error
                say("there is space again" if is_there else "no work taken: no space", free_mb=round((free or 0) / 1e6))
            self._is_there = is_there
        return self._is_there

    def _free_bytes(self) -> int | None:
        """Return the smaller of the two, None when nobody knows of either."""
        known = []
        try:
            known.append(self._storage.free_bytes())
        except StorageFailed as err:  # whether it takes files, storing will tell
            log.debug("free space not known", reason=err.message)
        folder = next(path for path in (self._folder, *self._folder.parents) if path.exists())
        known.append(shutil.disk_usage(folder).free)
        return min((free for free in known if free is not None), default=None)
