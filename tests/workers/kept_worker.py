"""A worker's process with a real keeper and nothing to compute; `tests/workers/test_keeper.py` tells it what to do.

    python -m tests.workers.kept_worker REDIS_URL NAME LEASE_S

It reads a line of JSON, calls the function of that name, and answers with a line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import workers.keeping
from polyreel.leases import Wishes
from polyreel.logs import configure_logs
from polyreel.queue import Queue
from tests.core.jobs import MODEL
from workers.keeping import Keeping, setup_for


def main(url: str, name: str, lease_s: float) -> None:
    """Do what standard input says."""
    configure_logs("debug", name)
    workers.keeping.OVERTIME_S = 0.5
    queue = Queue(url, retention_s=60, max_open=100, job_timeout_s=60, lease_s=lease_s, patient=True)
    about = {"models": [MODEL], "loaded": []}
    keeping = Keeping(setup_for(url, name, retention_s=60, lease_s=lease_s, log_level="debug"), lambda: about)
    heard: list[dict[str, Any]] = []  # Any: JSON
    keeping.on_orders = lambda orders: heard.append(asdict(orders))
    keeping.start()

    def claim(most: int = 1, limit_s: float | None = None) -> list[list[object]]:
        claims = queue.leases.claim(name, Wishes([MODEL], batches={MODEL: [(10**12, most)]}))
        keeping.hold(claims)
        keeping.limit(claims, limit_s)
        return [[claim.job_id, claim.fence] for claim in claims]

    def hold_the_lock(seconds: int) -> None:
        """Be in a native call that keeps Python's lock, as libraries do; no other thread runs meanwhile."""
        ctypes.PyDLL(None).sleep(seconds)

    def refresh_for(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            keeping.refresh()
            time.sleep(0.02)

    def refresh_often(times: int) -> None:
        for _ in range(times):
            keeping.refresh()

    functions: dict[str, Callable[..., Any]] = {  # Any: JSON
        "claim": claim,
        "hold_the_lock": hold_the_lock,
        "refresh_for": refresh_for,
        "refresh_often": refresh_often,
        "lost": lambda: sorted([claim.job_id, claim.fence] for claim in keeping.lost),
        "hand_back": keeping.hand_back,
        "is_heard": lambda: keeping.is_heard,
        "heard": lambda: heard,
        "stop": keeping.stop,
    }
    print("null", flush=True)  # noqa: T201
    for line in sys.stdin:
        function, *arguments = json.loads(line)
        print(json.dumps(functions[function](*arguments)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
