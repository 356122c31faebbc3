"""`polyreel up`: the queue, the API and a worker as child processes, watched and restarted.

A child that dies is started again with growing pauses; one that ends with exit code 2 says that a setting is wrong,
which no restart cures, so everything stops. SIGINT and SIGTERM stop the worker first (it may finish its job within
`drain_s`), then the API, then the queue.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.errors import ConfigurationError
from polyreel.processes import command
from polyreel.settings import Settings

_CONFIGURATION_EXIT = 2

#: Pauses before the next start of a child that keeps dying, seconds; the last one repeats.
_BACK_OFF_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)

#: A child that lived this long starts again without a pause when it dies, seconds.
_STEADY_S = 60.0


@dataclass
class _Child:
    """One supervised process."""

    name: str
    arguments: list[str]
    stop_s: float
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    not_before: float = 0.0

    def start(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command(self.name, [*self.arguments, "--parent", str(os.getpid())]),
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the children in order
        )
        self.started_at = time.monotonic()

    def stop(self, is_hurried: Callable[[], bool]) -> None:
        """SIGTERM; again after `stop_s`, or when the operator hurries (a worker then hands its job back); SIGKILL
        5 s later.
        """
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        # RQ takes a second signal within a second for an echo of the first.
        if self._ends_within(1.1) or self._ends_within(self.stop_s - 1.1, is_hurried):
            return
        self.process.terminate()
        if not self._ends_within(5.0):
            self.process.kill()
            self.process.wait()

    def _ends_within(self, patience_s: float, is_hurried: Callable[[], bool] = lambda: False) -> bool:
        assert self.process is not None  # noqa: S101 only asked of a started child
        deadline = time.monotonic() + patience_s
        while self.process.poll() is None:
            if time.monotonic() >= deadline or is_hurried():
                return False
            time.sleep(0.05)
        return True


@dataclass
class Supervisor:
    """Runs the whole server until it is told to stop.

    Args:
        settings: as the command line gave them.
        arguments: flags that the children get too (`--config`, `--state-dir`).
    """

    settings: Settings
    arguments: list[str]
    _broker: EmbeddedBroker | None = None
    _stopping: bool = field(default=False, init=False)
    _hurried: bool = field(default=False, init=False)

    def run(self) -> int:
        """Start everything and watch it; return the exit code (0 stopped, 2 wrong settings).

        Raises:
            ConfigurationError: the state folder is in use, or there is no queue server.
        """
        try:
            self.settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.settings.state_dir / "lock").touch()
        except OSError as err:
            raise ConfigurationError(
                f"state_dir: cannot write to {self.settings.state_dir}: {err.strerror}. "
                "Choose another: --state-dir DIR."
            ) from None
        serve_flags = ["--host", self.settings.host, "--port", str(self.settings.port)]
        children = [
            _Child("worker", self.arguments, stop_s=max(1.1, self.settings.drain_s)),
            _Child("serve", [*self.arguments, *serve_flags], stop_s=15.0),
        ]
        with _only_one(self.settings.state_dir):
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self._request_stop)
            try:
                return self._watch(children)
            finally:
                if self._stopping:
                    _say(
                        f"stopping; a job in progress may take {self.settings.drain_s:g} s more (drain_s), then it is "
                        "handed back and runs again at the next start. Stop again to hand it back now."
                    )
                for child in children:
                    child.stop(lambda: self._hurried)
                if self._broker:
                    self._broker.stop()

    def _request_stop(self, _signum: int, _frame: FrameType | None) -> None:
        self._hurried = self._stopping
        self._stopping = True

    def _watch(self, children: list[_Child]) -> int:
        environment = dict(os.environ)
        while not self._stopping:
            if self.settings.redis_url is None and (self._broker is None or self._broker.process.poll() is not None):
                if self._broker:
                    _say(f"the queue server ended ({self._broker.process.returncode}); starting it again")
                self._broker = start_embedded(self.settings.state_dir)
                environment["REDIS_URL"] = self._broker.url
            for child in children:
                code = self._keep_alive(child, environment)
                if code is not None:
                    return code
            time.sleep(0.1)
        return 0

    def _keep_alive(self, child: _Child, environment: dict[str, str]) -> int | None:
        """Start `child` if it is not running and its pause is over; return an exit code to stop everything with."""
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return None
            if code == _CONFIGURATION_EXIT:
                return code  # it has said what is wrong
            steady = time.monotonic() - child.started_at > _STEADY_S
            child.failures = 0 if steady else child.failures + 1
            pause = _BACK_OFF_S[min(child.failures, len(_BACK_OFF_S) - 1)]
            _say(f"{child.name} ended ({code}); starting it again in {pause:g} s")
            child.not_before = time.monotonic() + pause
            child.process = None
        if time.monotonic() >= child.not_before:
            child.start(environment)
        return None


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state folder's lock: two servers on one append-only file would lose each other's jobs."""
    with (state_dir / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"state_dir: another polyreel up is using {state_dir}. Stop it, or choose another: --state-dir DIR."
            ) from None
        yield


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads us any more, which is no reason to leave the children alone
        print(f"polyreel up: {text}", file=sys.stderr, flush=True)  # noqa: T201
