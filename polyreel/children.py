"""One supervised process: how it starts, how its deaths are counted, how it is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from polyreel.processes import command

#: Pauses before the next start of a child, by how often it died young in a row, seconds; the last one repeats.
BACK_OFF_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)

#: A life this long is no young death, seconds.
STEADY_S = 60.0

#: RQ takes a second signal within a second for an echo of the first.
_ECHO_S = 1.1

#: From the second SIGTERM to SIGKILL, and from that to giving up on a process that the kernel cannot end, seconds.
_HAND_BACK_S = 5.0

#: Exit codes that mean something in a worker; `workers` gives them.
_EXITS = {
    70: "exit code 70, a job did not heed its time limit",
    71: "exit code 71, not fit for another job",
    -signal.SIGKILL: "SIGKILL, which the kernel sends too when memory runs out",
}


@dataclass
class Deaths:
    """Counts the deaths of one child and says how long to wait before its next start.

    Five young deaths in a row are a crash loop. They never take longer than five minutes: four lives of up to
    `STEADY_S` lie between the first and the fifth, and the pauses between them make 18 s.
    """

    loop_of = 5
    young: int = 0

    @property
    def is_loop(self) -> bool:
        """True while the child keeps dying young."""
        return self.young >= self.loop_of

    def after(self, lived_s: float) -> float:
        """Count a death after a life of `lived_s` seconds; return the pause before the next start, seconds."""
        self.young = self.young + 1 if lived_s < STEADY_S else 0
        return BACK_OFF_S[min(self.young, len(BACK_OFF_S) - 1)]

    def ends_with(self, lived_s: float) -> bool:
        """Forget the young deaths once a life has lasted; return True if that ends a crash loop."""
        if lived_s < STEADY_S:
            return False
        was_loop, self.young = self.is_loop, 0
        return was_loop


@dataclass
class Child:
    """One supervised process, over all its lives.

    Args:
        name: for messages, e.g. "worker gpu0".
        process: a key of `polyreel.processes.PROCESS_MODULES`.
        arguments: flags of every start.
        stop_s: how long it may take to stop, seconds.
        environment: variables that it gets on top of the supervisor's.
        slot: of a worker, which is called `{host}-{slot}-{8 hex digits}`, anew at each start: the leases of one life
            can then be given up while the next one runs. None for other processes.
    """

    name: str
    process: str
    arguments: list[str]
    stop_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    slot: str | None = None
    deaths: Deaths = field(default_factory=Deaths, init=False)
    worker: str | None = field(default=None, init=False)
    not_before: float = field(default=0.0, init=False)
    _running: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _started_at: float = field(default=0.0, init=False)

    def start(self, environment: Mapping[str, str]) -> None:
        """Start it. Call this from the main thread: Linux ties the parent-death signal to the thread that forked."""
        naming = []
        if self.slot is not None:
            self.worker = f"{socket.gethostname()}-{self.slot}-{uuid.uuid4().hex[:8]}"
            naming = ["--name", self.worker]
        self._running = subprocess.Popen(
            command(self.process, [*self.arguments, *naming, "--parent", str(os.getpid())]),
            env={**environment, **self.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the children in order
        )
        self._started_at = time.monotonic()

    @property
    def is_started(self) -> bool:
        """True from a start until its end was noticed by `forget`."""
        return self._running is not None

    @property
    def exit_code(self) -> int | None:
        """How its last life ended, the negative signal number if by one; None while it runs."""
        return self._running.poll() if self._running else None

    @property
    def lived_s(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._started_at

    @property
    def is_running(self) -> bool:
        """True from a start until its end."""
        return self._running is not None and self._running.poll() is None

    def forget(self) -> None:
        """Make ready for the next start."""
        self._running = None

    def signal(self, signum: signal.Signals) -> None:
        """Signal it if it runs; SIGKILL goes to its whole process group, as what it started must not stay."""
        if self._running is None or self._running.poll() is not None:
            return
        if signum == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, signum)  # it leads the group, and is not reaped yet
        else:
            self._running.send_signal(signum)


def describe_exit(code: int) -> str:
    """Return in words how a process ended.

    Args:
        code: as `subprocess` gives it: negative for a signal.
    """
    if code in _EXITS:
        return _EXITS[code]
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"


def stop_together(
    children: Sequence[Child],
    is_hurried: Callable[[], bool],
    before_kill: Callable[[Sequence[Child]], None] = lambda _deaf: None,
) -> None:
    """SIGTERM to all at the same time; again after the longest `stop_s`, or when the operator hurries (a worker then
    hands its job back); SIGKILL 5 s later. Returns when all have ended, or 5 s after that: one that hangs in a driver
    dies when the driver lets go of it.

    Args:
        children: one group.
        is_hurried: whether the operator has asked for the stop a second time.
        before_kill: called with those that have to be killed.
    """
    began = time.monotonic()
    patience_s = max((child.stop_s for child in children), default=0.0)

    def is_over() -> bool:
        waited_s = time.monotonic() - began
        return waited_s >= _ECHO_S and (waited_s >= patience_s or is_hurried())

    _signal_and_wait(children, signal.SIGTERM, is_over)
    _signal_and_wait(children, signal.SIGTERM, _reaches(time.monotonic() + _HAND_BACK_S))
    if deaf := [child for child in children if child.is_running]:
        before_kill(deaf)
        _signal_and_wait(deaf, signal.SIGKILL, _reaches(time.monotonic() + _HAND_BACK_S))


def _reaches(deadline: float) -> Callable[[], bool]:
    return lambda: time.monotonic() >= deadline


def _signal_and_wait(children: Sequence[Child], signum: signal.Signals, is_over: Callable[[], bool]) -> None:
    for child in children:
        child.signal(signum)
    while any(child.is_running for child in children) and not is_over():
        time.sleep(0.05)
