"""The worker's keeper: a small process beside it that keeps its leases while the worker computes.

A call into a native library may hold Python's lock for longer than a lease lasts, so no thread of the worker could be
trusted to renew it. The keeper renews and beats for as long as the worker lives and is not stopped; it takes jobs from
other workers that have died; it ends its own worker when a job is over its time and does not heed the timer; and when
the worker dies, it gives its jobs back at once.

It reads lines of JSON from the worker (`State`), and writes one when jobs are lost: `{"lost": [[job id, fence], ...]}`,
one when administrators say something new about its models: `{"orders": {...}}` (`polyreel.commands.Orders`), and every
quarter of a lease `{"alive": true}`: a worker whose keeper is silent takes no work, and starts another one.
The end of its input is the end of the worker.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from polyreel.commands import Orders
from polyreel.job import TIMEOUT_MESSAGE, JobStatus
from polyreel.leases import Claim, Leases
from polyreel.logs import configure_logs, log_crashes
from polyreel.processes import start_as
from polyreel.records import Records, connect
from workers.gpu_stats import GpuStats
from workers.pace import Pace

log = structlog.get_logger()

#: Seconds between two heartbeats at most: with them a worker hears what is said about its models. One is shown as gone
#: after `polyreel.records.HEARTBEAT_TTL_S`.
BEAT_S = 1.0

#: Seconds between two repairs, over all keepers of one Redis.
REPAIR_S = 30.0

#: How much longer than its limit a job may take to heed the timer, seconds.
OVERTIME_S = 5.0

#: Seconds between two looks at a worker that is stopped.
_STOPPED_S = 0.2

#: How long a keeper tries to give back the jobs of its dead worker, seconds; after that their leases run out.
_FAREWELL_S = 3.0


@dataclass(frozen=True)
class Setup:
    """The first line that a keeper reads.

    Args:
        url: of Redis; it may hold a password, so it is not an argument.
        worker: name of the worker.
        parent: its process id.
        retention_s, lease_s: as in the settings.
        log_level: likewise.
        leads_group: the worker leads its process group, so that all in it was started by the worker.
        gpu: what it computes on, see `workers.gpu_stats.gpu_of`.
    """

    url: str
    worker: str
    parent: int
    retention_s: float
    lease_s: float
    log_level: str = "info"
    leads_group: bool = False
    gpu: str = ""


@dataclass(frozen=True)
class State:
    """What a worker is doing; each line replaces the one before.

    Args:
        about: what its heartbeat says, but for what the keeper measures. Its "succeeded" counts the worker's videos.
        claims: job id and fence of every job that it has.
        timed: those whose time is limited, with the seconds that are left of it; when one's is up, it fails and the
            worker ends.
        is_handing_back: it was told to stop; what it does not give back itself is no attempt either.
        is_stopping: it signs off, and waits for its keeper to do so.
    """

    about: dict[str, Any] = field(default_factory=dict)  # Any: JSON
    claims: list[tuple[str, int]] = field(default_factory=list)
    timed: list[tuple[str, int, float]] = field(default_factory=list)
    is_handing_back: bool = False
    is_stopping: bool = False

    def to_line(self) -> bytes:
        """Return the line that says so."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Keeper:
    """Keeps one worker's leases.

    Args:
        setup: whose.
        tell: called with the claims that the worker has lost.
        order: called with what it is told about its models, when that has changed.
    """

    def __init__(
        self,
        setup: Setup,
        tell: Callable[[list[Claim]], None],
        order: Callable[[Orders], None] = lambda orders: None,
    ) -> None:
        client = connect(setup.url, patient=False)
        self.setup = setup
        self.leases = Leases(client, retention_s=setup.retention_s, lease_s=setup.lease_s)
        self.records = Records(client, setup.retention_s, setup.lease_s)
        self.state = State()
        self.gpu = GpuStats(setup.gpu)
        self._pace = Pace()
        self._tell = tell
        self._order = order
        self._orders = Orders()
        self._lost: set[Claim] = set()
        self._deadlines: dict[Claim, float] = {}
        every = self.leases.renew_s
        self._due = {"beat": 0.0, "renew": 0.0, "reap": 0.0, "repair": 0.0}
        self._every = {"beat": min(BEAT_S, every), "renew": every, "reap": every, "repair": REPAIR_S}
        self._is_away = False
        self.is_over = False

    def take(self, line: bytes) -> None:
        """Read a line of the worker's."""
        self.state = State(**json.loads(line))
        self._pace.note(self.state.about.get("succeeded", 0))
        now = time.monotonic()
        self._deadlines = {Claim(job_id, fence): now + left_s for job_id, fence, left_s in self.state.timed}
        self._lost &= {Claim(job_id, fence) for job_id, fence in self.state.claims}
        self._due["beat"] = 0.0  # what it says is new

    def pause_s(self) -> float:
        """Return how long there is nothing to do."""
        moments = [*self._due.values(), *self._deadlines.values()]
        return min(1.0, max(0.0, min(moments) - time.monotonic()))

    def tick(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        late = [claim for claim, until in self._deadlines.items() if until <= now]
        if late:
            self._end_the_worker(late)
            return
        if _is_stopped(self.setup.parent):  # who stands still holds up nobody: its leases run out
            self._due = {task: max(due, now + _STOPPED_S) for task, due in self._due.items()}
            return
        for task in [task for task, due in self._due.items() if due <= now]:
            self._due[task] = now + self._every[task]
            try:
                if getattr(self, f"_{task}")() and self._is_away:
                    log.info("queue is back")
                    self._is_away = False
            except Exception as err:  # a keeper outlives any trouble with Redis
                if not self._is_away:
                    log.warning("queue does not answer", reason=str(err))
                self._is_away = True
                # At once when it is back: after an outage leases are short.
                self._due[task] = time.monotonic() + min(0.5, self._every[task])
                return

    # Each returns whether Redis was asked.

    def _beat(self) -> bool:
        measured = {"gpu": self.gpu.newest, "jobs_per_minute": self._pace.per_minute}
        orders = self.leases.beat(self.setup.worker, self.state.about | measured)
        if orders != self._orders:
            self._orders = orders
            self._order(orders)
        return True

    def _renew(self) -> bool:
        claims = [Claim(job_id, fence) for job_id, fence in self.state.claims]
        claims = [claim for claim in claims if claim not in self._lost]
        if not claims:
            return False
        said = self.leases.renew(self.setup.worker, claims)
        lost = [claim for claim, word in zip(claims, said, strict=True) if word != "ok"]
        if lost:
            self._lost.update(lost)
            self._tell(lost)
        return True

    def _reap(self) -> bool:
        for job_id, status in self.leases.reap().items():
            log.warning("job taken from a dead worker", job_id=job_id, status=status)
        return True

    def _repair(self) -> bool:
        # One of all keepers; who comes too late does so in the next round.
        for job_id, what in self.leases.repair(every_s=int(REPAIR_S * 0.8)).items():
            log.warning("job repaired", job_id=job_id, done=what)
        return True

    def _end_the_worker(self, late: list[Claim]) -> None:
        log.critical(
            "worker ends", reason="a job is over its time and heeds no timer", job_ids=[c.job_id for c in late]
        )
        if len(late) == 1:  # of several nobody knows which it was: each runs again, alone
            [claim] = late
            with suppress(Exception):  # Redis is away: it runs again elsewhere, and comes to the same end there
                self.records.advance(
                    claim.job_id, claim.fence, JobStatus.FAILED, error_code="timeout", error_message=TIMEOUT_MESSAGE
                )
        self.is_over = True  # one that hangs in the kernel does not die yet, and its other jobs must not wait for that
        os.kill(self.setup.parent, signal.SIGKILL)  # nothing gentler reaches a process that does not run Python

    def farewell(self) -> None:
        """Say that the worker has gone; what it has not given back itself, others may have at once."""
        deadline = time.monotonic() + _FAREWELL_S
        while True:
            try:
                taken = self.leases.expire_worker(self.setup.worker, counted=not self.state.is_handing_back)
                for job_id, status in taken.items():
                    log.warning("job taken from a dead worker", job_id=job_id, status=status)
                return
            except Exception as err:
                if time.monotonic() > deadline:
                    log.warning("worker not signed off", reason=str(err))
                    return
                time.sleep(0.2)


def _kill_what_it_left(worker: int) -> None:
    """Kill what a dead worker had started: an encoder that hangs would stay. Call this when the worker led its group.

    The number is still the group's: the system gives it to nobody else while the group has members.
    """
    deadline = time.monotonic() + _FAREWELL_S
    while os.getppid() == worker and time.monotonic() < deadline:
        time.sleep(0.05)  # its pipes close before it is gone; one that ends by itself waits for us instead
    if os.getppid() != worker:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(worker, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    """Return whether a process was stopped by a signal; False where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


def main() -> int:
    """Keep a worker's leases until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its worker, whatever the terminal says
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe = sys.stdin.buffer.raw if hasattr(sys.stdin.buffer, "raw") else sys.stdin.buffer
    buffer = b""

    def read() -> list[bytes] | None:
        nonlocal buffer
        chunk = os.read(pipe.fileno(), 65536)
        if not chunk:
            return None
        *lines, buffer = (buffer + chunk).split(b"\n")
        return lines

    lines: list[bytes] = []
    while not lines:
        found = read()
        if found is None:
            return 0
        lines = found
    setup = Setup(**json.loads(lines.pop(0)))
    start_as("polyreel keeper", None)
    configure_logs(setup.log_level, "keeper")
    log_crashes()

    def say(said: dict[str, object]) -> None:
        with suppress(OSError):  # the worker has just ended, which the next read says
            sys.stdout.buffer.write(json.dumps(said).encode() + b"\n")
            sys.stdout.buffer.flush()

    keeper = Keeper(
        setup,
        lambda lost: say({"lost": [(claim.job_id, claim.fence) for claim in lost]}),
        lambda orders: say({"orders": asdict(orders)}),
    )
    keeper.gpu.start()
    speak_at = 0.0
    while os.getppid() == setup.parent:
        for line in lines:
            keeper.take(line)
        keeper.tick()
        if time.monotonic() >= speak_at:
            say({"alive": True})
            speak_at = time.monotonic() + keeper.leases.renew_s
        lines = []
        if keeper.is_over:
            break
        if select.select([pipe], [], [], keeper.pause_s())[0]:
            found = read()
            if found is None:
                break
            lines = found
    while True:  # its last words may have been that it hands its jobs back
        for line in lines:
            keeper.take(line)
        found = read() if select.select([pipe], [], [], 0)[0] else None
        if found is None:
            break
        lines = found
    keeper.farewell()
    if setup.leads_group and not keeper.state.is_stopping:
        _kill_what_it_left(setup.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
