"""Finds every process that a supervisor has left behind, children of its children included."""

from __future__ import annotations

import os
import time

import psutil


def sessions_below(pid: int) -> set[int]:
    """Return the sessions that the children of `pid` lead: what they start later belongs to these too."""
    below = psutil.Process(pid).children(recursive=True)
    return {os.getsid(process.pid) for process in below} - {os.getsid(pid)}


def titles_in(sessions: set[int]) -> list[str]:
    """Return the command lines of the processes that run in these sessions, sorted."""
    titles = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                titles.append(" ".join(process.cmdline()).strip())
        except (psutil.Error, OSError):  # it has ended meanwhile
            continue
    return sorted(titles)


def all_gone_from(sessions: set[int], timeout_s: float = 60) -> bool:
    """Return whether nothing runs in these sessions, soon."""
    deadline = time.monotonic() + timeout_s
    while titles_in(sessions):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
