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
    return Offer(queue.records.client, "one", ["atelier", "ltx-tiny"], lambda: unavailable, after_s=300)


def test_a_worker_takes_jobs_of_what_loads(queue: Queue) -> None:
    assert offer(queue, {}).wanted() == ["atelier", "ltx-tiny"]


def test_a_model_that_loads_nowhere_is_taken_when_nobody_has_served_it_for_long(
    queue: Queue, clock: list[float]
) -> None:
    one = offer(queue, {"ltx-tiny": "its folder is missing"})
    assert one.wanted() == ["atelier"]
    clock[0] += 299
    assert one.wanted() == ["atelier"]
    clock[0] += 2
    assert one.wanted() == ["atelier", "ltx-tiny"]
    assert one.served() == ["atelier"]


def test_a_model_that_another_worker_serves_is_left_to_that_one(queue: Queue, clock: list[float]) -> None:
    one = offer(queue, {"ltx-tiny": "its folder is missing"})
    assert one.wanted() == ["atelier"]
    clock[0] += 301
    queue.leases.beat("two", {"models": ["ltx-tiny"], "loaded": []})
    assert one.wanted() == ["atelier"]
    queue.leases.leave("two")
    clock[0] += 10
    assert one.wanted() == ["atelier"]  # it may be restarting
    clock[0] += 301
    assert one.wanted() == ["atelier", "ltx-tiny"]


def test_a_model_that_was_mended_is_served(queue: Queue, clock: list[float]) -> None:
    unavailable = {"ltx-tiny": "its folder is missing"}
    one = offer(queue, unavailable)
    assert one.wanted() == ["atelier"]
    unavailable.clear()
    assert one.wanted() == ["atelier", "ltx-tiny"]
