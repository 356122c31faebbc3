"""The worker's end of its keeper (`workers.keeper`): starts it, tells it what the worker does, hears what was lost."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import structlog

from polyreel.leases import Claim
from polyreel.processes import command
from workers.keeper import OVERTIME_S, Setup, State

log = structlog.get_logger()

#: How long a keeper may take to sign its worker off, seconds.
_STOP_S = 5.0


class Keeping:
    """Keeps this worker's leases in a process of its own. Safe to use from several threads.

    Args:
        setup: of this worker; `parent` is this process.
        about: what the heartbeat says, asked anew at each change; JSON values.

    Attributes:
        lost: claims that this worker had and has no more: the job was cancelled, or is somebody else's.
    """

    def __init__(self, setup: Setup, about: Callable[[], dict[str, Any]]) -> None:
        self.lost: set[Claim] = set()
        self._setup = setup
        self._about = about
        self._claims: dict[str, Claim] = {}
        self._timed: list[tuple[str, int]] = []
        self._limit_s: float | None = None
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopping = False

    def start(self) -> None:
        """Start the keeper; the first heartbeat goes out when it is up."""
        with self._lock:
            self._start()
            self._say()

    def hold(self, claims: Sequence[Claim], limit_s: float | None = None) -> None:
        """Keep the leases of more jobs.

        Args:
            limit_s: how long they may take in all, seconds; `workers.keeper.OVERTIME_S` later this process is killed.
        """
        with self._lock:
            self._claims |= {claim.job_id: claim for claim in claims}
            if limit_s is not None:
                self._timed = [(claim.job_id, claim.fence) for claim in claims]
                self._limit_s = limit_s + OVERTIME_S
            self._say()

    def untimed(self) -> None:
        """Lift the time limit; the leases are kept."""
        with self._lock:
            self._timed, self._limit_s = [], None
            self._say()

    def let_go(self, job_id: str) -> None:
        """Keep the lease of a job no longer: it has ended, or was given back."""
        with self._lock:
            claim = self._claims.pop(job_id, None)
            if claim:
                self.lost.discard(claim)
            self._timed = [timed for timed in self._timed if timed[0] != job_id]
            if not self._timed:
                self._limit_s = None
            self._say()

    def refresh(self) -> None:
        """Tell anew what the worker is doing."""
        with self._lock:
            self._say()

    @property
    def claims(self) -> list[Claim]:
        """Every job that this worker has."""
        with self._lock:
            return list(self._claims.values())

    def stop(self) -> None:
        """Sign the worker off; what it still has is given back by the keeper."""
        with self._lock:
            self._is_stopping = True
            process = self._process
            if process is None or process.stdin is None:
                return
            self._write(State(is_leaving=not self._claims))
            process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            command("keeper", []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the worker, which tells its keeper when it has done
        )
        assert self._process.stdin is not None  # noqa: S101 it is a pipe
        self._process.stdin.write(json.dumps(asdict(self._setup)).encode() + b"\n")
        threading.Thread(target=self._listen, args=(self._process,), name="keeper", daemon=True).start()

    def _say(self) -> None:
        if self._is_stopping or self._process is None:
            return
        claims = [(claim.job_id, claim.fence) for claim in self._claims.values()]
        self._write(State(self._about(), claims, self._timed, self._limit_s))

    def _write(self, state: State) -> None:
        assert self._process is not None  # noqa: S101 it was started
        assert self._process.stdin is not None  # noqa: S101 it is a pipe
        try:
            self._process.stdin.write(state.to_line())
            self._process.stdin.flush()
        except OSError:  # it has ended; `_listen` starts the next one, which is told everything
            pass

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101 it is a pipe
        for line in process.stdout:
            lost = {Claim(job_id, fence) for job_id, fence in json.loads(line)["lost"]}
            with self._lock:
                self.lost |= lost & set(self._claims.values())
        code = process.wait()
        with self._lock:
            if self._is_stopping:
                return
            log.warning("keeper ended, starting it again", code=code)
            self._start()
            self._say()


def setup_for(url: str, worker: str, *, retention_s: float, lease_s: float, log_level: str) -> Setup:
    """Return the setup of this process' keeper."""
    return Setup(url, worker, os.getpid(), retention_s, lease_s, log_level)
