"""What a worker tells its keeper: all that it has, at every change, and the time that is left, which only shrinks."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

import psutil
import pytest

import workers.keeping
from polyreel.leases import Claim
from tests.workers.test_keeper import until
from workers.keeper import Setup
from workers.keeping import Keeping, setup_for

ONE, TWO = Claim("one", 1), Claim("two", 7)


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Told(Keeping):
    """Keeps the lines instead of a process."""

    def __init__(self) -> None:
        super().__init__(Setup("", "worker", 0, 60, 20), lambda: {"job": "one"})
        self.lines: list[dict[str, Any]] = []  # Any: JSON
        self._process = object()  # as if started

    def _write(self, line: bytes) -> None:
        self.lines.append(json.loads(line))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(workers.keeping, "time", clock)
    return clock


@pytest.fixture
def told(clock: Clock) -> Told:
    return Told()


def test_every_line_says_everything(told: Told) -> None:
    told.hold([ONE, TWO])
    told.let_go(ONE)
    assert told.lines == [
        {
            "about": {"job": "one"},
            "claims": [["one", 1], ["two", 7]],
            "timed": [],
            "is_handing_back": False,
            "is_stopping": False,
        },
        {"about": {"job": "one"}, "claims": [["two", 7]], "timed": [], "is_handing_back": False, "is_stopping": False},
    ]
    assert told.claims == [TWO]


def timed(told: Told) -> list[dict[str, float]]:
    """What each line says of the seconds that are left."""
    return [{job_id: left_s for job_id, _, left_s in line["timed"]} for line in told.lines]


def test_the_time_that_is_left_shrinks_whatever_is_told_in_between(told: Told, clock: Clock) -> None:
    told.hold([ONE, TWO])
    told.limit([TWO], 60)
    clock.now += 20
    told.refresh()
    told.limit([ONE], 100)
    clock.now += 50
    told.refresh()
    told.let_go(ONE)
    assert timed(told) == [{}, {"two": 65}, {"two": 45}, {"two": 45, "one": 105}, {"two": 0, "one": 55}, {"two": 0}]


def test_a_limit_is_lifted_with_its_job_and_leaves_those_of_others(told: Told) -> None:
    told.hold([ONE, TWO])
    told.limit([ONE, TWO], 60)
    told.let_go(ONE)
    told.limit([TWO], None)
    told.hold([ONE])
    assert timed(told) == [{}, {"one": 65, "two": 65}, {"two": 65}, {}, {}]
    assert told.claims == [TWO, ONE]


def test_a_loss_is_forgotten_with_the_job(told: Told) -> None:
    told.hold([ONE, TWO])
    told.lost = frozenset({ONE, TWO})
    told.let_go(ONE)
    assert told.lost == {TWO}
    told.let_go(Claim("never had", 1))
    assert told.claims == [TWO]


def test_the_late_end_of_one_claim_leaves_a_newer_one_of_the_same_job(told: Told) -> None:
    told.hold([ONE])
    told.hold([Claim("one", 2)])
    told.limit([Claim("one", 2)], 60)
    told.let_go(ONE)
    assert told.claims == [Claim("one", 2)]
    assert told.lines[-1] == {
        "about": {"job": "one"},
        "claims": [["one", 2]],
        "timed": [["one", 2, 65]],
        "is_handing_back": False,
        "is_stopping": False,
    }


def test_a_keeper_that_cannot_run_is_not_started_all_the_time(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers.keeping, "_RESTART_S", 0.5)
    starts: list[float] = []

    def command(*_: object) -> list[str]:
        starts.append(workers.keeping.time.monotonic())
        return [sys.executable, "-S", "-c", "print('not JSON'); raise SystemExit(3)"]

    monkeypatch.setattr(workers.keeping, "command", command)
    keeping = Keeping(Setup("", "worker", 0, 60, 20), dict)
    keeping.start()
    until(lambda: len(starts) >= 3, "it to be started again and again")
    keeping.stop()
    assert starts[2] - starts[0] >= 0.9  # twice 0.5 s between starts, less what two clocks may differ by


def test_a_keeper_that_cannot_be_started_any_more_is_tried_again_and_then_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers.keeping, "_RESTART_S", 0.05)
    monkeypatch.setattr(workers.keeping, "_ALONE_S", 0.5)
    commands = [[sys.executable, "-S", "-c", "print('{\"alive\": true}')"]]
    monkeypatch.setattr(workers.keeping, "command", lambda *_: commands.pop() if commands else ["/nowhere/at all"])
    keeping = Keeping(Setup("", "worker", 0, 60, 20), dict)
    alone = threading.Event()
    keeping.on_alone = alone.set
    keeping.start()
    assert alone.wait(60)
    until(lambda: not keeping.is_heard, "the silence to be noticed")
    commands.append([sys.executable, "-S", "-c", "print('{\"alive\": true}', flush=True); input(); input(); input()"])
    until(lambda: keeping.is_heard, "the next keeper to be heard")
    keeping.stop()


def test_the_address_of_redis_is_on_no_command_line() -> None:
    keeping = Keeping(
        setup_for("redis://:secret@127.0.0.1:9/0", "worker", retention_s=60, lease_s=20, log_level="error"), dict
    )
    keeping.start()
    process = keeping._process
    assert isinstance(process, subprocess.Popen)
    assert "secret" not in " ".join(psutil.Process(process.pid).cmdline())
    process.kill()
    keeping.stop()
