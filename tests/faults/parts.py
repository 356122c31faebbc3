"""The processes of a server, over all their lives: started, signalled, killed.

Everything is started from the main thread: Linux ties the parent-death signal to the thread that forked, and nothing
is to outlive a test run that is killed itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import redis

#: Every duration of the queue follows from this, seconds.
LEASE_S = 2.0

#: How long a test waits for what must come, seconds. Generous: what must come fast is asserted apart.
PATIENCE_S = 90.0


class Gone(AssertionError):
    """Raised when a condition did not come true in time."""


def until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S, every_s: float = 0.02) -> float:
    """Wait until a condition holds; return the seconds that it took.

    Raises:
        Gone: it did not; says what.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise Gone(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - began


class Part:
    """One process of the server, over all its lives.

    Args:
        name: for messages and the name of its log.
        command: returns the arguments of its next start.
        environment: of it.
        folder: for its log.
    """

    def __init__(self, name: str, command: Callable[[], list[str]], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.environment = environment
        self.log = folder / f"{name}.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what it says goes into its log."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """True while it lives, also while it is stopped."""
        return self._process is not None and self._process.poll() is None

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal if it lives."""
        if self.is_running:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Kill it as the kernel does, and wait until it is gone; what it started is left alone."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self, timeout_s: float = 60) -> int:
        """End it in good order; return its exit code."""
        assert self._process is not None, f"{self.name} was not started"
        self.signal(signal.SIGTERM)
        return self._process.wait(timeout_s)


class Worker(Part):
    """A worker; every life has a name of its own, as under a supervisor."""

    def __init__(self, slot: str, flags: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self.lives = 0
        self.slot = slot

        def command() -> list[str]:
            self.lives += 1
            return module("tests.faults.worker", *flags, "--name", self.worker, "--parent", str(os.getpid()))

        super().__init__(slot, command, environment, folder)

    @property
    def worker(self) -> str:
        """The name of this life."""
        return f"{self.slot}-{self.lives}"

    @property
    def jobs(self) -> list[str]:
        """Ids of the jobs that it says it has, in its heartbeat."""
        with redis.Redis.from_url(self.environment["REDIS_URL"], decode_responses=True) as client:
            about = client.get(f"polyreel:worker:{self.worker}")
        return list(json.loads(str(about))["jobs"]) if about else ["(unknown)"]

    @property
    def keeper(self) -> int | None:
        """Process id of its keeper, None while it has none."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "keeper" in " ".join(child.cmdline()):
                        return child.pid
        return None

    def kill_with_keeper(self) -> None:
        """Kill both at once, as when the machine dies: nobody gives the leases back."""
        keeper = self.keeper
        if keeper:
            os.kill(keeper, signal.SIGKILL)
        self.kill()


def base_url(api: Part) -> str:
    """Return the address of an API process."""
    return f"http://127.0.0.1:{api.environment['FAULTS_PORT']}"


def module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this project."""
    return [sys.executable, "-P", "-m", name, *arguments]
