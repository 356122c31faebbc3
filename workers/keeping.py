"""The worker's end of its keeper (`workers.keeper`): starts it, tells it what the worker does, hears what was lost."""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import IO, Any

import structlog

from polyreel.commands import Command, Orders
from polyreel.leases import Claim
from polyreel.processes import command
from workers.keeper import OVERTIME_S, Setup, State

log = structlog.get_logger()

#: How long a keeper may take to sign its worker off, seconds.
_STOP_S = 5.0

#: A keeper is silent for a lease before it is replaced, but for no less than this, seconds: a Redis that hangs holds it
#: up for 3 s.
_LEAST_SILENCE_S = 10.0

#: How long a worker tries to have a keeper, seconds.
_ALONE_S = 60.0

#: Seconds between the starts of two keepers: one that cannot run must not take the processor with it.
_RESTART_S = 1.0


class Keeping:
    """Keeps this worker's leases in a process of its own. Safe to use from several threads.

    Args:
        setup: of this worker; `parent` is this process.
        about: what the heartbeat says, asked anew at each change; JSON values.

    Attributes:
        lost: claims that this worker had and has no more: the job was cancelled, or is somebody else's. Replaced as a
            whole, never changed, because other threads read it.
        on_alone: called in a thread when no keeper has said anything for a minute of starting them.
        on_orders: called in a thread with what administrators say, whenever that changes, and by each new keeper.
    """

    def __init__(self, setup: Setup, about: Callable[[], dict[str, Any]]) -> None:
        self.lost: frozenset[Claim] = frozenset()
        self.on_alone: Callable[[], None] = lambda: None
        self.on_orders: Callable[[Orders], None] = lambda orders: None
        self._quiet = 0
        self._heard_at = 0.0
        self._listen_s = max(setup.lease_s, _LEAST_SILENCE_S) / 4
        self._setup = setup
        self._about = about
        self._claims: dict[str, Claim] = {}
        self._deadlines: dict[Claim, float] = {}
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopping = False
        self._is_handing_back = False

    def start(self) -> None:
        """Start the keeper; the first heartbeat goes out when it is up."""
        with self._lock:
            self._heard_at = time.monotonic()
            self._start()
            self._say()

    @property
    def is_heard(self) -> bool:
        """False when the keeper has said nothing for half a lease: what is claimed then would be lost."""
        return self._quiet < 2

    def hold(self, claims: Sequence[Claim]) -> None:
        """Keep the leases of more jobs."""
        with self._lock:
            self._claims |= {claim.job_id: claim for claim in claims}
            self._say()

    def limit(self, claims: Sequence[Claim], limit_s: float | None) -> None:
        """Say how long jobs may take from now on; `workers.keeper.OVERTIME_S` later this process is killed.

        Args:
            limit_s: seconds for all of them together, None lifts the limit: the leases are kept.
        """
        with self._lock:
            for claim in claims:
                self._deadlines.pop(claim, None)
                if limit_s is not None:
                    self._deadlines[claim] = time.monotonic() + limit_s + OVERTIME_S
            self._say()

    def let_go(self, claim: Claim) -> None:
        """Keep this lease no longer: the job has ended, or was given back. A newer claim of the same job stays."""
        with self._lock:
            if self._claims.get(claim.job_id) == claim:
                del self._claims[claim.job_id]
            self.lost = self.lost - {claim}
            self._deadlines.pop(claim, None)
            self._say()

    def refresh(self) -> None:
        """Tell anew what the worker is doing."""
        with self._lock:
            self._say()

    def hand_back(self) -> None:
        """Say that this worker gives its jobs back; what it has when it ends is not counted as an attempt."""
        with self._lock:
            self._is_handing_back = True
            self._say()

    @property
    def claims(self) -> list[Claim]:
        """Every job that this worker has."""
        with self._lock:
            return list(self._claims.values())

    def stop(self) -> None:
        """Sign the worker off; what it still has is given back by the keeper."""
        with self._lock:
            process = self._process
            self._say(is_stopping=True)
            self._is_stopping = True
            if process is None:
                return
            _pipe(process.stdin).close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> None:
        process = subprocess.Popen(
            command("keeper", []),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the worker, which tells its keeper when it has done
        )
        self._process = process
        self._write(json.dumps(asdict(self._setup)).encode() + b"\n")
        os.set_blocking(_pipe(process.stdin).fileno(), False)
        threading.Thread(target=self._listen, args=(process,), name="keeper", daemon=True).start()

    def _say(self, *, is_stopping: bool = False) -> None:
        if self._is_stopping or self._process is None:
            return
        claims = [(claim.job_id, claim.fence) for claim in self._claims.values()]
        now = time.monotonic()
        timed = [(claim.job_id, claim.fence, max(0.0, until - now)) for claim, until in self._deadlines.items()]
        self._write(State(self._about(), claims, timed, self._is_handing_back, is_stopping).to_line())

    def _write(self, line: bytes) -> None:
        """Send a line; never waits, because a step of the pipeline may stand behind it."""
        assert self._process is not None  # noqa: S101 it was started
        try:
            if _pipe(self._process.stdin).write(line) != len(line):
                self._process.kill()  # the pipe is full: a keeper that has not read for so long hangs
        except (OSError, ValueError):  # it has ended; `_listen` starts the next one, which is told everything
            pass

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        since, silent = time.monotonic(), 0
        buffer = b""
        poll = select.poll()
        with _pipe(process.stdout) as pipe:
            poll.register(pipe, select.POLLIN)
            while True:
                # Slices are counted, not seconds: after a call that kept Python's lock the lines are read first.
                if not poll.poll(self._listen_s * 1000):
                    silent += 1
                    self._note_silence()
                    if silent == 4:
                        process.kill()
                    continue
                chunk = os.read(pipe.fileno(), 65536)
                if not chunk:
                    break
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    if self._hear(line):
                        silent = 0
        code = process.wait()
        _pipe(process.stdin).close()
        if not self._is_stopping:
            log.warning("keeper ended, starting it again", code=code)
            self._note_silence()
        self._start_again(since)

    def _note_silence(self) -> None:
        self._quiet += 1
        if self._quiet == 2:
            log.error("keeper is silent", consequence="this worker takes no work until it is heard again")

    def _hear(self, line: bytes) -> bool:
        """Heed a line; return whether it is one."""
        try:
            said = json.loads(line)
            lost = {Claim(job_id, fence) for job_id, fence in said.get("lost", ())}
            orders = _orders(said["orders"]) if "orders" in said else None
        except (ValueError, AttributeError, KeyError, TypeError):  # cut off by its end; the next one finds out the same
            return False
        with self._lock:
            self.lost = self.lost | (lost & set(self._claims.values()))
        self._quiet, self._heard_at = 0, time.monotonic()
        if orders is not None:
            self.on_orders(orders)
        return True

    def _start_again(self, since: float) -> None:
        is_told = False
        while not self._is_stopping:
            time.sleep(max(0.0, since + _RESTART_S - time.monotonic()))
            since = time.monotonic()
            if since - self._heard_at > _ALONE_S:
                self.on_alone()
            with self._lock:
                if self._is_stopping:
                    return
                try:
                    self._start()
                    self._say()
                    return
                except OSError as err:  # no memory, or no process more
                    if not is_told:
                        log.error("keeper does not start", reason=str(err))
                    is_told = True
            self._note_silence()


def _orders(said: dict[str, Any]) -> Orders:
    return Orders(tuple(Command(**command) for command in said["commands"]), said["pins"])


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # noqa: S101 a pipe was asked for; this tells mypy
    return pipe


def setup_for(url: str, worker: str, *, retention_s: float, lease_s: float, log_level: str, gpu: str = "") -> Setup:
    """Return the setup of this process' keeper."""
    return Setup(url, worker, os.getpid(), retention_s, lease_s, log_level, os.getpgrp() == os.getpid(), gpu)
