"""`polyreel serve` with a point to be killed at: between a job's record and the answer to its client.

python -m tests.faults.api --config ... --port ...
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from fastapi import FastAPI

import server.__main__
import server.app
from polyreel.queue import Queue
from tests.faults.paced import stop_at

_submit = Queue.submit
_create_app = server.app.create_app


def _submit_and_stop(self: Queue, *args: Any, **more: Any) -> Any:  # Any: as `Queue.submit`
    stored = _submit(self, *args, **more)
    stop_at("submitted")
    return stored


async def _process() -> dict[str, float]:
    return {"tasks": len(asyncio.all_tasks()), "clock": time.time()}


def _create_app_and_tell(*args: Any, **more: Any) -> FastAPI:  # Any: as `create_app`
    app = _create_app(*args, **more)
    app.add_api_route("/faults/process", _process)
    return app


if __name__ == "__main__":
    Queue.submit = _submit_and_stop  # type: ignore[method-assign]
    server.app.create_app = _create_app_and_tell
    sys.exit(server.__main__.main())
