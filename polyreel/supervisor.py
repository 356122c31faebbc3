"""`polyreel up`: the queue, the API, the courier and the workers as child processes, watched and restarted;
`polyreel worker` with several workers: these alone.

A child that dies is started again with growing pauses, and one in a crash loop is told of once; the others go on. One
that ends with exit code 2 says that a setting is wrong, which no restart cures, so everything stops. A worker that
died is told to the queue at once, which gives its jobs to others. SIGINT and SIGTERM stop the workers first, all at the
same time (each may finish its job within `drain_s`), then the API and the courier, then the queue.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.children import BACK_OFF_S, STEADY_S, Child, describe_exit, stop_together
from polyreel.errors import ConfigurationError
from polyreel.gpus import Place
from polyreel.leases import Leases
from polyreel.records import connect
from polyreel.settings import Settings
from polyreel.state_lock import state_lock

_CONFIGURATION_EXIT = 2

#: How long the API may take to stop, seconds: a synchronous answer may be on its way.
_SERVE_STOP_S = 15.0

#: How long the courier may take, seconds: deliveries under way get 5 s, and a Redis that hangs takes 4 s to say so.
_COURIER_STOP_S = 10.0

#: How much longer than `drain_s` a worker is given, seconds: it hands its jobs back by itself when that is over.
_LATER_S = 2.0

#: How long the notices of dead workers may delay a stop, seconds. A Redis that hangs takes 3 s to say so.
_NOTICES_S = 4.0


class Supervisor:
    """Runs the whole server, or several workers, until it is told to stop.

    Args:
        settings: as the command line gave them.
        arguments: flags that the children get too (`--config`, `--state-dir`, `--device`).
        places: where the workers run, one process for each, see `polyreel.gpus.places`.
        workers_only: True for `polyreel worker`: no queue, API or courier of its own, so it needs `redis_url`.
    """

    def __init__(
        self, settings: Settings, arguments: list[str], places: Sequence[Place], *, workers_only: bool = False
    ) -> None:
        self.settings = settings
        self._workers_only = workers_only
        self._title = "polyreel worker" if workers_only else "polyreel up"
        drain_s = max(1.1, settings.drain_s) + _LATER_S
        self._workers = [
            Child(
                f"worker {place.slot}" if len(places) > 1 else "worker",
                "worker",
                arguments,
                stop_s=drain_s,
                environment=place.environment,
                slot=place.slot,
            )
            for place in places
        ]
        serve_flags = ["--host", settings.host, "--port", str(settings.port)]
        api = Child("serve", "serve", [*arguments, *serve_flags], _SERVE_STOP_S)
        courier = Child("courier", "courier", arguments, _COURIER_STOP_S)
        self._others = [] if workers_only else [api, courier]
        self._broker: EmbeddedBroker | None = None
        self._environment = dict(os.environ)
        self._notices: list[threading.Thread] = []
        self._stopping = False
        self._hurried = False

    def run(self) -> int:
        """Start everything and watch it; return the exit code (0 stopped, 2 wrong settings).

        Raises:
            ConfigurationError: the state folder is in use, or there is no queue server.
        """
        if self._workers_only:
            if self.settings.redis_url is None:
                raise ConfigurationError(
                    "redis_url: workers need REDIS_URL; `polyreel up` starts an embedded queue by itself."
                )
            return self._run()
        try:
            self.settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.settings.state_dir / "lock").touch()
        except OSError as err:
            raise ConfigurationError(
                f"state_dir: cannot write to {self.settings.state_dir}: {err.strerror}. "
                "Choose another: --state-dir DIR."
            ) from None
        with _only_one(self.settings.state_dir):
            return self._run()

    def _run(self) -> int:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._request_stop)
        if len(self._workers) > 1:
            self._say(f"{len(self._workers)} workers: {', '.join(str(worker.slot) for worker in self._workers)}")
        try:
            return self._watch()
        finally:
            self._stop()

    def _request_stop(self, _signum: int, _frame: FrameType | None) -> None:
        self._hurried = self._stopping
        self._stopping = True

    def _watch(self) -> int:
        needs_broker = self.settings.redis_url is None
        while not self._stopping:
            if needs_broker and (self._broker is None or self._broker.process.poll() is not None):
                if self._broker:
                    self._say(f"the queue server ended ({self._broker.process.returncode}); starting it again")
                self._broker = start_embedded(self.settings.state_dir)
                self._environment["REDIS_URL"] = self._broker.url
            for child in [*self._workers, *self._others]:
                if self._keep_alive(child) == _CONFIGURATION_EXIT:
                    return _CONFIGURATION_EXIT  # it has said what is wrong
            time.sleep(0.1)
        return 0

    def _keep_alive(self, child: Child) -> int | None:
        """Start `child` if it is not running and its pause is over; return the exit code of one that has just ended."""
        if child.is_running:
            if child.deaths.ends_with(child.lived_s):
                self._say(f"{child.name} has run for {STEADY_S:g} s: its crash loop is over.")
            return None
        code = child.exit_code
        if code is not None:
            self._give_up_leases(child, code)
            if code != _CONFIGURATION_EXIT:
                self._say_restart(child, code)
            child.forget()
        elif time.monotonic() >= child.not_before:
            child.start(self._environment)
        return code

    def _say_restart(self, child: Child, code: int) -> None:
        was_loop = child.deaths.is_loop
        pause = child.deaths.after(child.lived_s)
        child.not_before = time.monotonic() + pause
        if child.deaths.is_loop and not was_loop:
            self._say(
                f"{child.name} is in a crash loop: it died {child.deaths.young} times in a row within {STEADY_S:g} s "
                f"of its start, the last time by {describe_exit(code)}. Its own last lines above say why. It is "
                f"started again every {BACK_OFF_S[-1]:g} s, and the others go on; when the cause is mended it comes "
                "back by itself, unless a setting was wrong: then stop and start."
            )
        elif not child.deaths.is_loop:
            self._say(f"{child.name} ended ({describe_exit(code)}); starting it again in {pause:g} s")

    def _stop(self) -> None:
        if self._stopping:
            jobs = "a job in progress" if len(self._workers) == 1 else "jobs in progress"
            self._say(
                f"stopping; {jobs} may take {self.settings.drain_s:g} s more (drain_s), what is not done then is "
                "handed back and runs again at the next start. Stop again to hand it back now."
            )
        for children in (self._workers, self._others):
            stop_together(children, lambda: self._hurried, self._hand_back_for)
            for child in children:
                if child.is_running:
                    self._say(f"{child.name} does not end, not even by SIGKILL; it hangs in the kernel.")
                elif child.exit_code is not None:
                    self._give_up_leases(child, child.exit_code)
            self._wait_for_notices()
        if self._broker:
            self._broker.stop()

    def _give_up_leases(self, child: Child, code: int) -> None:
        """Let the jobs of a worker that did not end well run elsewhere now, and not when their leases have run out."""
        if code != 0:
            self._notify(child, counted=True)

    def _hand_back_for(self, deaf: Sequence[Child]) -> None:
        """Hand back the jobs of workers that do not: one in a native call hears no signal, and made no attempt."""
        for child in deaf:
            self._notify(child, counted=False)
        self._wait_for_notices()

    def _notify(self, child: Child, *, counted: bool) -> None:
        """Tell the queue that a worker has gone.

        In a thread: a Redis that hangs must not keep the other children from being watched.
        """
        if child.worker is None:
            return
        url = self.settings.redis_url.get_secret_value() if self.settings.redis_url else self._environment["REDIS_URL"]
        arguments = (url, child.name, child.worker, counted)
        self._notices = [notice for notice in self._notices if notice.is_alive()]
        self._notices.append(threading.Thread(target=self._expire, args=arguments, name="notice", daemon=True))
        self._notices[-1].start()

    def _wait_for_notices(self) -> None:
        deadline = time.monotonic() + _NOTICES_S
        for notice in self._notices:
            notice.join(max(0.0, deadline - time.monotonic()))

    def _expire(self, url: str, name: str, worker: str, counted: bool) -> None:
        try:
            with connect(url, patient=False) as client:
                jobs = Leases(client, retention_s=self.settings.retention_s).expire_worker(worker, counted=counted)
        except Exception as err:  # whatever it is, the leases run out by themselves
            self._say(f"{name}: its jobs wait until their leases run out, the queue cannot be told ({err!r})")
            return
        for job_id, what in jobs.items():
            self._say(f"{name}: its job {job_id} is {what}")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads us any more, which is no reason to leave the children alone
            print(f"{self._title}: {text}", file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    with state_lock(state_dir) as is_mine:
        if not is_mine:
            raise ConfigurationError(
                f"state_dir: another polyreel up is using {state_dir}. Stop it, or choose another: --state-dir DIR."
            )
        yield
