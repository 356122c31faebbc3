"""Shifts the clock of a process and of those that it starts: Python imports this by itself from PYTHONPATH.

FAULTS_CLOCK names a file with the seconds by which `time.time` and `datetime.now` are ahead; it may change at any time.
"""

from __future__ import annotations

import datetime
import os
import time

if "FAULTS_CLOCK" in os.environ:
    _time, _Datetime = time.time, datetime.datetime

    def _ahead_s() -> float:
        try:
            with open(os.environ["FAULTS_CLOCK"]) as file:  # noqa: PTH123 as little as possible is imported here
                return float(file.read())
        except (OSError, ValueError):  # it is being written
            return 0.0

    class _Kind(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, _Datetime)

    class _Shifted(_Datetime, metaclass=_Kind):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return _Datetime.now(tz) + datetime.timedelta(seconds=_ahead_s())

        @classmethod
        def utcnow(cls) -> datetime.datetime:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    time.time = lambda: _time() + _ahead_s()
    time.time_ns = lambda: int(time.time() * 1e9)
    datetime.datetime = _Shifted  # type: ignore[misc]
