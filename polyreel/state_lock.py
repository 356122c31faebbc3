"""One process at a time uses a state folder's queue: two on one append-only file would lose each other's jobs."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def state_lock(state_dir: Path) -> Iterator[bool]:
    """Hold a state folder's lock; give False where somebody else has it."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state_dir / "lock").open("a") as lock:
        is_mine = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_mine = False
        yield is_mine
