"""Where a running job's snapshots lie, and which one the next attempt finds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from models._snapshot import copied, pack
from polyreel.errors import StorageFailed
from polyreel.storage import Storage
from polyreel.storage.local import LocalStorage
from polyreel.storage.memory import MemoryStorage
from workers.snapshots import JobSnapshots

JOB = "0b5c1c2e-7b1e-4a53-9d2f-1d3f0e6a8c11"

Attempt = Callable[..., JobSnapshots]


def snapshot(step: int) -> bytes:
    """A whole snapshot that says which one it is."""
    return pack("somebody's", copied({"step": step}))


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return LocalStorage(tmp_path / "stored") if request.param == "file" else MemoryStorage()


@pytest.fixture
def attempt(storage: Storage, tmp_path: Path) -> Attempt:
    """Begin an attempt at a job."""

    def begin(fence: int, job_id: str = JOB, where: Storage = storage) -> JobSnapshots:
        return JobSnapshots(where, job_id, fence, every=5, scratch=tmp_path / "scratch")

    return begin


def stored(attempt: JobSnapshots, *snapshots: bytes) -> None:
    """Save these one after the other, each when the one before is in the storage."""
    for number, state in enumerate(snapshots):
        attempt.save(state, number)
        waiting = attempt._waiting
        assert waiting is not None
        waiting.result(60)


def test_the_first_attempt_starts_at_the_beginning(attempt: Attempt):
    first = attempt(1)

    assert first.state is None
    assert first.every == 5


def test_the_next_attempt_starts_from_what_was_saved_last(attempt: Attempt, tmp_path: Path):
    stored(attempt(1), snapshot(5), snapshot(10))

    assert attempt(2).state == snapshot(10)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_it_starts_from_the_newest_attempt_that_saved_anything(attempt: Attempt):
    stored(attempt(1), snapshot(20))
    stored(attempt(2), snapshot(10))
    attempt(3)

    assert attempt(4).state == snapshot(10)
    assert attempt(9).state == snapshot(10)


def test_an_attempt_that_was_given_up_and_lives_overwrites_nothing_of_its_successor(attempt: Attempt):
    zombie, successor = attempt(1), attempt(2)
    stored(successor, snapshot(10))
    stored(zombie, snapshot(99))

    assert attempt(3).state == snapshot(10)


def test_an_attempt_does_not_start_from_its_own_snapshot_or_a_later_one(attempt: Attempt):
    stored(attempt(2), snapshot(5))
    stored(attempt(3), snapshot(10))

    assert attempt(2).state is None


def test_jobs_do_not_see_each_other(attempt: Attempt):
    stored(attempt(1), snapshot(5))

    assert attempt(2, job_id="9d2f1d3f-7b1e-4a53-9d2f-1d3f0e6a8c11").state is None


def test_a_damaged_snapshot_is_passed_over_for_an_older_one(attempt: Attempt):
    stored(attempt(1), snapshot(5))
    stored(attempt(2), snapshot(10)[:-1])
    with capture_logs() as logs:
        assert attempt(3).state == snapshot(5)

    assert [(entry["event"], entry["fence"]) for entry in logs] == [("snapshot is damaged", 2)]


def test_a_storage_that_cannot_be_read_starts_at_the_beginning(attempt: Attempt):
    class Away(MemoryStorage):
        def size(self, key: str) -> int | None:
            raise StorageFailed("away")

    with capture_logs() as logs:
        assert attempt(3, where=Away()).state is None
    assert [entry["event"] for entry in logs] == ["snapshot not read", "snapshot not read"]


@dataclass(frozen=True)
class Held(MemoryStorage):
    """A storage whose writes wait to be let through, and are counted."""

    began: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    puts: list[str] = field(default_factory=list)

    def put(self, source: Path, key: str) -> None:
        self.began.set()
        assert self.go.wait(60)
        self.puts.append(key)
        super().put(source, key)


def test_saving_waits_for_nothing_and_the_newest_wins(attempt: Attempt):
    held = Held()
    slow = attempt(1, where=held)
    slow.save(snapshot(1), 1)
    assert held.began.wait(60)
    for step in range(2, 50):
        slow.save(snapshot(step), step)  # would never come back if it waited
    assert held.puts == []
    held.go.set()
    assert slow._waiting is not None
    slow._waiting.result(60)

    assert len(held.puts) == 2
    assert attempt(2, where=held).state == snapshot(49)


def test_closing_waits_for_nothing_and_drops_what_waits(attempt: Attempt):
    held = Held()
    slow = attempt(1, where=held)
    slow.save(snapshot(1), 1)
    assert held.began.wait(60)
    slow.save(snapshot(2), 2)
    slow.close()
    slow.save(snapshot(3), 3)
    held.go.set()
    slow._writer.shutdown(wait=True)

    assert attempt(2, where=held).state == snapshot(1)


def test_a_job_that_ended_leaves_nothing_behind_not_even_what_is_being_saved(attempt: Attempt):
    held = Held()
    first = attempt(1, where=held)
    held.go.set()
    stored(first, snapshot(1))
    held.go.clear()
    held.began.clear()
    last = attempt(3, where=held)
    last.save(snapshot(2), 2)
    assert held.began.wait(60)
    deleting = threading.Thread(target=last.delete)
    deleting.start()
    held.go.set()
    deleting.join(60)

    assert not deleting.is_alive()
    assert len(held.puts) == 2
    assert held.files == {}
    last.save(snapshot(4), 4)
    assert held.files == {}


def test_deleting_what_was_never_saved_is_nothing(attempt: Attempt, storage: Storage):
    stored(attempt(1), snapshot(5))
    attempt(3).delete()

    assert storage.size(f"run/{JOB}/1") is None


def test_a_failure_to_save_is_told_once_and_costs_nothing_else(attempt: Attempt):
    class Full(MemoryStorage):
        def put(self, source: Path, key: str) -> None:
            raise StorageFailed("The result could not be stored: No space left on device.")

    full = attempt(1, where=Full())
    with capture_logs() as logs:
        stored(full, snapshot(1), snapshot(2), snapshot(3))

    assert [(entry["event"], entry["step"]) for entry in logs] == [("snapshot not saved", 0)]


def test_after_a_failure_the_next_snapshot_is_stored_again(attempt: Attempt):
    @dataclass(frozen=True)
    class Flaky(MemoryStorage):
        failures: list[int] = field(default_factory=lambda: [1])

        def put(self, source: Path, key: str) -> None:
            if self.failures:
                self.failures.pop()
                raise StorageFailed("away for a moment")
            super().put(source, key)

    flaky = Flaky()
    stored(attempt(1, where=flaky), snapshot(1), snapshot(2))

    assert attempt(2, where=flaky).state == snapshot(2)


def test_a_storage_that_cannot_delete_does_not_fail_the_job(attempt: Attempt):
    class Stubborn(MemoryStorage):
        def delete(self, key: str) -> None:
            raise StorageFailed("not now")

    with capture_logs() as logs:
        attempt(2, where=Stubborn()).delete()
    assert [entry["event"] for entry in logs] == ["snapshot not deleted", "snapshot not deleted"]


def test_the_snapshot_that_waits_when_a_worker_is_stopped_is_still_stored(attempt: Attempt):
    first = attempt(1)
    first.save(snapshot(5), 5)
    first.save(snapshot(10), 10)
    first.close(60)
    first.save(snapshot(15), 15)

    assert attempt(2).state == snapshot(10)
