"""The kill storm: for a while, every few seconds something dies or stands still, chosen by a seed.

    make storm SECONDS=60 SEED=7          or: python -m tests.faults.storm --seconds 60 --seed 7

Clients of all dialects go on all the while. When it is over everything is started again, and within two minutes every
acknowledged job must have ended: none lost, none done twice under a client's eyes, no state moved back.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.faults.asks import Kept, mixed
from tests.faults.clients import Crowd
from tests.faults.laws import Watch, check, check_deliveries, record_count
from tests.faults.parts import LEASE_S, Part, Worker
from tests.faults.stand import Stand
from tests.server.receivers import Receiver, answering

#: How long healing may take, seconds.
HEALED_S = 120.0

#: Jobs at least; longer storms get more, so that there is always work.
JOBS = 200


@dataclass
class Fault:
    """Something that is broken now.

    Args:
        what: e.g. "kill worker".
        heal: mends it.
        heal_at: when, on the monotonic clock.
    """

    what: str
    heal: Callable[[], None]
    heal_at: float


@dataclass
class Storm:
    """Breaks parts of a server, and mends them a little later."""

    stand: Stand
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    _broken: dict[str, Fault] = field(default_factory=dict)

    def blow(self, seconds: float, say: Callable[[str], None]) -> None:
        """Go on for a while, then mend everything."""
        began = time.monotonic()
        next_at = began
        while (now := time.monotonic()) - began < seconds:
            self._mend(now)
            if now >= next_at:
                what = self._break(now)
                say(f"{now - began:6.1f} s  {what}")
                next_at = now + self.rng.uniform(2, 5)
            time.sleep(0.02)
        self._mend(float("inf"))

    def _mend(self, now: float) -> None:
        for name, fault in list(self._broken.items()):
            if fault.heal_at <= now:
                del self._broken[name]
                fault.heal()

    def _break(self, now: float) -> str:
        """Break one thing that is whole; return what."""
        how, kinds = (
            self.rng.choice(("kill", "kill", "stop")),
            ("api", "worker", "keeper", "machine", "courier", "valkey"),
        )
        kind, which = self.rng.choice(kinds), self.rng.randrange(2)
        away_s = self.rng.uniform(0, 2) if how == "kill" else self.rng.uniform(0.5, 2.5 * LEASE_S)
        # A worker, its keeper, and the machine of both are one thing to break at a time.
        alone = {"valkey": "valkey", "courier": "courier", "api": f"api {which}"}
        name = alone.get(kind, f"worker {which}")
        what = f"{how} {kind}"
        if name in self._broken:
            return f"({name} is broken already)"
        heal = self._hit(how, kind, which)
        if heal is None:
            return f"({kind} {which} is not up)"
        self.counts[what] += 1
        self._broken[name] = Fault(what, heal, now + away_s)
        return f"{what} {which if name != kind else ''} for {away_s:.1f} s"

    def _hit(self, how: str, kind: str, which: int) -> Callable[[], None] | None:
        """Break a part; return what mends it, None when it is not up."""
        stand = self.stand
        if kind == "valkey":
            if how == "kill":
                stand.kill_valkey()
                return stand.start_valkey
            stand.valkey.process.send_signal(signal.SIGSTOP)
            return lambda: stand.valkey.process.send_signal(signal.SIGCONT)
        parts: dict[str, Part] = {"api": stand.apis[which], "courier": stand.courier}
        part = parts.get(kind, stand.workers[which])
        if not part.is_running:
            return None
        pids = [part.pid]
        if isinstance(part, Worker) and kind in ("keeper", "machine"):
            keeper = part.keeper
            if keeper is None:
                return None
            pids = [keeper] if kind == "keeper" else [keeper, part.pid]
        if how == "stop":
            _signal(pids, signal.SIGSTOP)
            return lambda: _signal(pids, signal.SIGCONT)
        _signal(pids, signal.SIGKILL)
        if kind == "keeper":
            return lambda: None  # its worker starts the next one
        part.kill()
        return part.start


def _signal(pids: list[int], signum: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


def storm(seconds: float, seed: int, folder: Path, say: Callable[[str], None] = print) -> None:
    """Run a storm.

    Args:
        folder: for logs and data.
        say: gets the seed first, every fault, and a table at the end.

    Raises:
        AssertionError: a law was broken; says which.
    """
    say(f"kill storm of {seconds:g} s, seed {seed}; to repeat it: make storm SECONDS={seconds:g} SEED={seed}")
    rng = random.Random(seed)
    stand, receiver = Stand(folder / "stand", batch=3, POLYREEL_DRAIN_S="2"), Receiver(_unreliable)
    try:
        stand.start()
        with receiver, Watch(stand) as watch:
            asks = mixed(
                max(JOBS, int(2 * seconds)), f"storm{seed}", rng, min(0.3, seconds / 600), receiver=receiver.url
            )
            crowd = Crowd(stand.bases, asks, over_s=seconds, pause_s=0.8).start()
            chaos = Storm(stand, rng)
            chaos.blow(seconds, say)
            healed = time.monotonic()
            stand.start()
            kept = crowd.finish(HEALED_S)
            healing_s = time.monotonic() - healed
            check_deliveries(stand, kept, receiver, HEALED_S)
        say(table(stand, chaos, watch, kept, healing_s, receiver.count()))
        assert watch.wrong == [], watch.wrong
        check(stand, kept, deaths_allowed=True)
        doubled = record_count(stand) - len(asks)
        assert doubled == 0, f"{doubled} jobs more than requests"
        say("every law holds")
    finally:
        stand.close()


def _unreliable(receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
    """Refuse every fourth message."""
    answering(503 if receiver.count() % 4 == 0 else 204)(receiver, handler)


def table(stand: Stand, chaos: Storm, watch: Watch, kept: list[Kept], healing_s: float, messages: int) -> str:
    """Return what happened, as lines of text."""
    stored = [stand.records.get(one.job_id) if one.job_id else None for one in kept]
    attempts = Counter(found.job.attempts for found in stored if found)
    resent = sum(one.submits > 1 for one in kept)
    rows = [
        ("faults", sum(chaos.counts.values()), ", ".join(f"{n} {what}" for what, n in sorted(chaos.counts.items()))),
        ("requests", len(kept), f"{resent} of them sent more than once"),
        ("ended", sum(bool(one.end) for one in kept), str(dict(Counter(one.end for one in kept)))),
        ("lost", sum(not one.end or found is None for one, found in zip(kept, stored, strict=True)), ""),
        ("doubled", record_count(stand) - len(kept), "jobs more than requests"),
        ("moved back", len(watch.wrong), f"in {watch.seen} looks at records"),
        ("attempts", sum(attempts.values()), ", ".join(f"{n} jobs {tried}" for tried, n in sorted(attempts.items()))),
        ("calls", len(stand.calls()), f"{len(stand.calls('ended'))} came to their end"),
        ("messages", messages, f"for the webhooks of {sum(bool(one.ask.webhook) for one in kept)} jobs"),
        ("healed in", round(healing_s, 1), f"s, of {HEALED_S:g}"),
    ]
    return "\n".join(f"  {name:12}{value:>8}  {more}" for name, value, more in rows)


def main() -> int:
    """Run a storm from the command line; returns 0 when every law holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix=f"polyreel-storm-{seed}-"))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        storm(options.seconds, seed, folder)
    except AssertionError as err:
        print(f"FAILED with seed {seed}; logs in {folder}\n{err}")  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
