"""Files are made beside the next call: what overlaps, what waits, and what a stop does to it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from polyreel.errors import StorageFailed
from polyreel.job import JobStatus
from polyreel.queue import Queue
from polyreel.request import PromptSpan
from polyreel.storage.memory import MemoryStorage
from tests.core.jobs import REQUEST, assert_all_adds_up, queued
from tests.families.quick import Quick
from tests.workers.claims import read, run, take
from workers.keeper import OVERTIME_S
from workers.runner import JobRunner

MakeRunner = Callable[..., JobRunner]


class Held(MemoryStorage):
    """Takes no file before `go` is set; `began` says that one came."""

    go: threading.Event
    began: threading.Event

    def put(self, source: Path, key: str) -> None:
        self.began.set()
        assert self.go.wait(60)
        super().put(source, key)


@pytest.fixture
def held() -> Iterator[Held]:
    storage = Held()
    object.__setattr__(storage, "go", threading.Event())
    object.__setattr__(storage, "began", threading.Event())
    yield storage
    storage.go.set()


def test_the_next_job_is_denoised_while_the_first_is_stored(make_runner: MakeRunner, queue: Queue, held: Held) -> None:
    first, second = queue.submit(queued()).job, queue.submit(queued()).job
    seen = []

    def look(step: int) -> None:
        if step == 4:
            seen.append((read(queue, first).status.value, runner.current, runner.jobs()))
        if len(seen) == 2:
            held.go.set()

    runner = make_runner(Quick(after_step=look), storage=held)
    runner.run(take(runner))
    assert held.began.wait(60)
    runner.run(take(runner))
    runner.finish()
    assert seen == [
        ("running", (first.id,), [first.id]),
        ("uploading", (second.id,), [first.id, second.id]),
    ]
    assert [read(queue, job).status.value for job in (first, second)] == ["succeeded", "succeeded"]
    assert runner.jobs() == []
    assert_all_adds_up(queue.records.client)


def test_a_call_and_the_files_of_a_job_have_a_limit_each(make_runner: MakeRunner, queue: Queue, held: Held) -> None:
    job = queue.submit(queued()).job
    left: list[dict[str, float]] = []

    def look(*_: object) -> None:
        deadlines = runner.keeping._deadlines
        left.append({claim.job_id: until - time.monotonic() for claim, until in deadlines.items()})

    runner = make_runner(Quick(after_step=lambda step: look() if step == 1 else None), storage=held)
    claims = take(runner)
    look()
    runner.run(claims)
    assert held.began.wait(60)
    look()
    held.go.set()
    runner.finish()
    look()
    assert left[0] == left[3] == {}
    assert 0 < left[1][job.id] <= 60 + OVERTIME_S  # the queue's job_timeout_s
    assert 60 + OVERTIME_S < left[2][job.id] <= 600 + OVERTIME_S


def test_videos_of_one_call_at_most_wait_in_memory_for_their_files(
    make_runner: MakeRunner, queue: Queue, held: Held
) -> None:
    jobs = [queue.submit(queued()).job for _ in range(3)]
    family = Quick()
    runner = make_runner(family, storage=held)

    def run_all() -> None:
        for _ in jobs:
            runner.run(take(runner))

    thread = threading.Thread(target=run_all)
    thread.start()
    deadline = time.monotonic() + 60
    while family.steps_done < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    thread.join(0.3)  # time in which a third call would begin
    assert (family.steps_done, thread.is_alive()) == (8, True)
    held.go.set()
    thread.join(60)
    runner.finish()
    assert [read(queue, job).status.value for job in jobs] == ["succeeded"] * 3


def test_a_call_whose_jobs_were_all_cancelled_waits_for_nobodys_files(
    make_runner: MakeRunner, queue: Queue, held: Held
) -> None:
    first, second = queue.submit(queued()).job, queue.submit(queued()).job
    runner = make_runner(Quick(after_step=lambda step: queue.cancel(second.id) and None), storage=held)
    runner.run(take(runner))
    assert held.began.wait(60)
    # would not return if it waited
    runner.keeping.hold(claims := take(runner))
    runner.run(claims)
    assert not held.go.is_set()
    assert read(queue, first).status is JobStatus.UPLOADING
    held.go.set()
    runner.finish()
    assert read(queue, first).status is JobStatus.SUCCEEDED


@pytest.fixture
def _stops_like_rq() -> Iterator[None]:
    """SIGUSR1 raises SystemExit wherever the main thread is, as RQ's second SIGTERM does."""

    def stop(*_: object) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGUSR1, stop)
    yield
    signal.signal(signal.SIGUSR1, before)


def stop_when(event: threading.Event) -> None:
    def wait() -> None:
        event.wait(60)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.usefixtures("_stops_like_rq")
def test_a_stop_while_files_are_made_hands_the_job_back_and_publishes_nothing_afterwards(
    make_runner: MakeRunner, queue: Queue, held: Held
) -> None:
    job = queue.submit(queued()).job
    runner = make_runner(Quick(), storage=held)
    stop_when(held.began)
    with pytest.raises(SystemExit):
        run(runner)
    back = queue.records.get(job.id)
    assert back is not None
    assert (back.claimable, back.job.attempts, runner.jobs()) == (True, 0, [])
    held.go.set()
    runner.finish()
    back = queue.records.get(job.id)
    assert back is not None
    assert (back.claimable, back.job.attempts, back.job.outputs, held.files) == (True, 0, (), {})
    assert_all_adds_up(queue.records.client)
    run(make_runner(Quick(), worker="two", storage=held))
    assert (read(queue, job).status, read(queue, job).worker) == (JobStatus.SUCCEEDED, "two")
    assert list(held.files) == [f"out/{job.id}/2/{job.id}.gif"]


@pytest.mark.usefixtures("_stops_like_rq")
def test_a_stop_in_the_next_call_hands_both_jobs_back(make_runner: MakeRunner, queue: Queue, held: Held) -> None:
    jobs = [queue.submit(queued()).job, queue.submit(queued()).job]

    def stop(step: int) -> None:
        if held.began.is_set():
            raise SystemExit

    runner = make_runner(Quick(after_step=stop), storage=held)
    runner.run(take(runner))
    assert held.began.wait(60)
    with pytest.raises(SystemExit):
        runner.run(take(runner))
    assert runner.jobs() == []
    held.go.set()
    runner.finish()
    for job in jobs:
        back = queue.records.get(job.id)
        assert back is not None
        assert (back.claimable, back.job.attempts, back.job.status.is_terminal) == (True, 0, False)
    assert held.files == {}


class Failing(Held):
    """Fails once it may go on."""

    def put(self, source: Path, key: str) -> None:
        super().put(source, key)
        raise StorageFailed("The result could not be stored: No space left on device.")


@pytest.mark.usefixtures("_stops_like_rq")
def test_a_failure_after_the_job_was_handed_back_is_not_its_end(make_runner: MakeRunner, queue: Queue) -> None:
    storage = Failing()
    object.__setattr__(storage, "go", threading.Event())
    object.__setattr__(storage, "began", threading.Event())
    job = queue.submit(queued()).job
    runner = make_runner(Quick(), storage=storage)
    stop_when(storage.began)
    with pytest.raises(SystemExit):
        run(runner)
    storage.go.set()
    runner.finish()
    back = queue.records.get(job.id)
    assert back is not None
    assert (back.claimable, back.job.status.is_terminal, back.job.error_code) == (True, False, "")


def test_what_goes_wrong_after_one_job_keeps_no_other_of_its_call_from_its_end(
    make_runner: MakeRunner, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [queue.submit(queued(replace(REQUEST, prompts=(PromptSpan(text, 9),)))).job for text in ("a fox", "a boat")]
    runner = make_runner(Quick())
    monkeypatch.setattr(runner, "_learn", lambda made: 1 / 0)
    run(runner, most=2)
    assert [read(queue, job).status.value for job in jobs] == ["succeeded", "succeeded"]
    assert runner.jobs() == []
