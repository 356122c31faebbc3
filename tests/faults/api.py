"""`polyreel serve` with a point to be killed at: between a job's record and the answer to its client.

python -m tests.faults.api --config ... --port ...
"""

from __future__ import annotations

import sys
from typing import Any

import server.__main__
from polyreel.queue import Queue
from tests.faults.paced import stop_at

_submit = Queue.submit


def _submit_and_stop(self: Queue, *args: Any, **more: Any) -> Any:  # Any: as `Queue.submit`
    stored = _submit(self, *args, **more)
    stop_at("submitted")
    return stored


if __name__ == "__main__":
    Queue.submit = _submit_and_stop  # type: ignore[method-assign]
    sys.exit(server.__main__.main())
