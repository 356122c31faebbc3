"""What every process of the server does at its start: a readable name in `ps`, and an end when its parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import setproctitle

#: The module that each process runs; the core starts them by name because it imports neither.
PROCESS_MODULES = {
    "serve": "server",
    "courier": "server.courier",
    "worker": "workers",
    "keeper": "workers.keeper",
    "generate": "workers.generate",
    "models": "workers.show_models",
    "pull": "workers.pull",
    "bench batch": "workers.bench_batch",
    "conformance": "server.conformance",
    "check settings": "server.check_settings",
    "check families": "workers.check_settings",
    "look at the device": "workers.look",
}


def command(process: str, arguments: list[str]) -> list[str]:
    """Return the argument list that starts a process of ours.

    `-P` keeps the working directory off the module path, where a folder called `models/` would hide ours.
    """
    return [sys.executable, "-P", "-m", PROCESS_MODULES[process], *arguments]


def start_as(title: str, parent: int | None) -> None:
    """Name this process and tie its life to its parent's.

    Args:
        title: shown by `ps`, e.g. "polyreel worker --device cpu".
        parent: process id of the supervisor, None when started by hand. If it is gone already, this process ends.
    """
    setproctitle.setproctitle(title)
    if parent is None:
        return
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        # SIGKILL: a supervisor that died took the embedded queue with it, so there is nothing left to finish for;
        # whatever was running is still open in the queue and runs again.
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
