"""How many jobs a worker finishes a minute, from a counter that only rises."""

from __future__ import annotations

import time
from collections import deque

#: The mean is over so many seconds.
WINDOW_S = 600.0

#: It is told as if at least so long had passed: the first job of a young worker says little about its pace.
LEAST_S = 60.0


class Pace:
    """The mean over the last ten minutes, or over its own age while it is younger.

    It counts from when it is made: jobs that ended before are nobody's pace.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._counted: int | None = None
        self._ended: deque[tuple[float, int]] = deque()

    def note(self, count: int) -> None:
        """Take note of how many jobs have ended in all; the first time it only says where to count from."""
        if self._counted is not None and count > self._counted:
            self._ended.append((time.monotonic(), count - self._counted))
        self._counted = count

    @property
    def per_minute(self) -> float:
        """Jobs a minute."""
        now = time.monotonic()
        while self._ended and self._ended[0][0] < now - WINDOW_S:
            self._ended.popleft()
        ended = sum(count for _, count in self._ended)
        return round(60 * ended / min(WINDOW_S, max(LEAST_S, now - self._since)), 3)
