"""Which models' jobs a worker takes, with other workers beside it on a real Valkey."""

from __future__ import annotations

import pytest

import workers.offer
from polyreel.queue import Queue
from workers.offer import Offer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the module; a test moves it on."""
    now = [1000.0]
    monkeypatch.setattr(workers.offer.time, "monotonic", lambda: now[0])
    return now


def offer(queue: Queue, unavailable: dict[str, str]) -> Offer:
    return Offer(queue.records.client, "one", ["wan-tiny", "ltx-tiny"], lambda: unavailable, after_s=300)


def test_a_worker_takes_jobs_of_what_loads(queue: Queue) -> None:
    assert offer(queue, {}).wanted() == ["wan-tiny", "ltx-tiny"]


def test_a_model_that_loads_nowhere_is_taken_when_nobody_has_served_it_for_long(
    queue: Queue, clock: list[float]
) -> None:
    one = offer(queue, {"ltx-tiny": "its folder is missing"})
    assert one.wanted() == ["wan-tiny"]
    clock[0] += 299
    assert one.wanted() == ["wan-tiny"]
    clock[0] += 2
    assert one.wanted() == ["wan-tiny", "ltx-tiny"]
    assert one.served() == ["wan-tiny"]


def test_a_model_that_another_worker_serves_is_left_to_that_one(queue: Queue, clock: list[float]) -> None:
    one = offer(queue, {"ltx-tiny": "its folder is missing"})
    assert one.wanted() == ["wan-tiny"]
    clock[0] += 301
    queue.leases.beat("two", {"models": ["ltx-tiny"], "loaded": []})
    assert one.wanted() == ["wan-tiny"]
    queue.leases.leave("two")
    clock[0] += 10
    assert one.wanted() == ["wan-tiny"]  # it may be restarting
    clock[0] += 301
    assert one.wanted() == ["wan-tiny", "ltx-tiny"]


def test_a_model_that_was_mended_is_served(queue: Queue, clock: list[float]) -> None:
    unavailable = {"ltx-tiny": "its folder is missing"}
    one = offer(queue, unavailable)
    assert one.wanted() == ["wan-tiny"]
    unavailable.clear()
    assert one.wanted() == ["wan-tiny", "ltx-tiny"]
