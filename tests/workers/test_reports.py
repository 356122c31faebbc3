"""Progress while Redis is away: the steps go on, and what was made is recorded when it is back."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models import Progress
from polyreel.errors import Cancelled
from polyreel.job import JobStatus
from polyreel.leases import Claim, Wishes
from polyreel.queue import Queue
from polyreel.records import Records, connect
from polyreel.storage.local import LocalStorage
from tests.core.jobs import REQUEST, queued
from tests.families.quick import Quick
from tests.workers.claims import read, run, take, unkept
from tests.workers.conftest import OwnValkey
from workers.reports import Reports
from workers.residency import Residency
from workers.runner import JobRunner


@pytest.fixture
def make(own: OwnValkey, make_residency: Callable[..., Residency], tmp_path: Path) -> Callable[[Quick], JobRunner]:
    """Return a factory of runners over a Valkey of their own, with the clients of `polyreel worker`."""

    def make(family: Quick) -> JobRunner:
        url = own.url
        queue = Queue(url, retention_s=60, max_open=100, job_timeout_s=60, patient=True)
        reports = Records(connect(url, patient=False), 60)
        residency = make_residency(**{"ltx-tiny": family})
        storage = LocalStorage(tmp_path / "results")
        return JobRunner(queue, reports, unkept(), residency, storage, tmp_path / "scratch", "one")

    return make


def test_steps_go_on_while_redis_does_not_answer(own: OwnValkey, make: Callable[[Quick], JobRunner]) -> None:
    def act(step: int) -> None:
        if step == 1:
            own.signal(signal.SIGSTOP)
        if step == 100:
            own.signal(signal.SIGCONT)

    runner = make(Quick(after_step=act))
    job = runner.queue.submit(queued(replace(REQUEST, num_inference_steps=100))).job
    began = time.monotonic()
    run(runner)
    # Each try that waits for its time-outs takes 2 s and more: 100 of them would take minutes.
    assert time.monotonic() - began < 60
    assert read(runner.queue, job).status is JobStatus.SUCCEEDED


def test_what_was_made_while_redis_was_down_is_recorded_when_it_is_back(
    own: OwnValkey, make: Callable[[Quick], JobRunner]
) -> None:
    family = Quick()
    runner = make(family)
    job = runner.queue.submit(queued(replace(REQUEST, num_inference_steps=50))).job

    def act(step: int) -> None:
        if step == 10:
            own.kill()
        if step == 50:
            own.start_soon()

    family.after_step = act
    run(runner)
    ended = read(runner.queue, job)
    assert (ended.status, ended.attempts, ended.progress) == (JobStatus.SUCCEEDED, 1, 100)
    assert family.steps_done == 50


def test_a_job_that_was_cancelled_unheard_is_dropped_when_the_keeper_says_so(
    own: OwnValkey, make: Callable[[Quick], JobRunner]
) -> None:
    family = Quick()
    runner = make(family)
    runner.queue.submit(queued(replace(REQUEST, num_inference_steps=50)))
    [claim] = take(runner)

    def act(step: int) -> None:
        if step == 10:
            own.kill()
        if step == 20:
            runner.keeping.lost = frozenset({claim})

    family.after_step = act
    runner.run([claim])
    assert family.steps_done == 21
    assert runner.jobs() == []


@pytest.fixture
def two(queue: Queue) -> list[Claim]:
    """Two jobs of one call."""
    for _ in range(2):
        queue.submit(queued())
    return queue.leases.claim("one", Wishes(["ltx-tiny"], batches={"ltx-tiny": [(10**12, 2)]}))


def test_a_call_goes_on_until_nobody_wants_any_of_it(queue: Queue, two: list[Claim]) -> None:
    keeping = unkept()
    keeping.hold(two)
    reports = Reports(queue.records, keeping, "one", two)
    reports.start()
    queue.cancel(two[0].job_id)
    reports.step(Progress("denoising", 1, 4, 0.2))
    assert reports.dropped == {two[0]}
    queue.cancel(two[1].job_id)
    with pytest.raises(Cancelled):
        reports.step(Progress("denoising", 2, 4, 0.4))
    assert [read(queue, claim.job_id).step for claim in two] == [0, 1]


def test_the_bar_stands_between_loading_and_encoding(queue: Queue, two: list[Claim]) -> None:
    reports = Reports(queue.records, unkept(), "one", two)
    seen = []
    reports.start()
    seen.append(read(queue, two[0].job_id).progress)
    for share in (0.0, 0.5, 1.0):
        reports.step(Progress("denoising", 1, 4, share))
        seen.append(read(queue, two[0].job_id).progress)
    assert seen == [5, 5, 45, 85]
