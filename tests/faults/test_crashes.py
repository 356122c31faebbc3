"""Workers, keepers and API processes that die or are told to end, at every point of a job's life."""

from __future__ import annotations

import os
import signal
import time

import pytest

from polyreel.job import JobStatus
from tests.faults.asks import Ask, Kept
from tests.faults.clients import Crowd, run_all
from tests.faults.laws import Watch, check, record_count
from tests.faults.parts import LEASE_S, until
from tests.faults.stand import Stand

#: What the README promises for a job whose worker died, seconds. With leases of a tenth of the usual length nothing
#: here should come near it.
PROMISED_S = 30.0


def one(stand: Stand, ask: Ask) -> Crowd:
    return Crowd(stand.bases, [ask], pause_s=0.1).start()


def status(stand: Stand, ask: Ask) -> JobStatus | None:
    """Return the status of the job of a request, None before there is one."""
    for job_id in stand.records.open_ids():
        stored = stand.records.get(job_id)
        if stored and stored.job.request.prompts[0].prompt == ask.prompt:
            return stored.job.status
    return None


def ended(crowd: Crowd) -> Kept:
    [kept] = crowd.finish(60)
    return kept


@pytest.mark.parametrize(
    ("point", "calls", "attempts"),
    [
        ("claimed", 1, 2),  # taken, not begun: nothing was generated before
        ("step", 2, 2),
        ("encoding", 2, 2),
        ("stored", 1, 2),  # the file is there, the record does not know: the other attempt stores it again, unmade
        ("ended", 1, 1),  # the record knows: nothing is done again
    ],
)
def test_a_job_whose_worker_is_killed_runs_again_elsewhere(stand: Stand, point: str, calls: int, attempts: int) -> None:
    stand.ask_to_stop_at(point)
    ask = Ask(f"killed-{point}", "modelslab")
    with Watch(stand) as watch:
        crowd = one(stand, ask)
        worker = stand.worker_of(stand.stopped_at(point))
        worker.kill()
        began = time.monotonic()
        stand.let_go(point)
        kept = ended(crowd)
    assert time.monotonic() - began < PROMISED_S
    assert watch.wrong == []
    check(stand, [kept])
    assert stand.times_begun(ask.prompt) == calls
    assert stand.record(kept.job_id).job.attempts == attempts


def test_a_job_whose_machine_is_lost_runs_again_when_its_lease_is_over(whole: Stand) -> None:
    whole.ask_to_stop_at("step")
    ask = Ask("machine-lost", "novita")
    crowd = one(whole, ask)
    worker = whole.worker_of(whole.stopped_at("step"))
    worker.kill_with_keeper()
    began = time.monotonic()
    whole.let_go("step")
    kept = ended(crowd)
    assert time.monotonic() - began < PROMISED_S
    check(whole, [kept])
    assert whole.record(kept.job_id).job.attempts == 2


def test_leases_outlast_a_keepers_death_and_a_native_call_that_holds_the_lock(whole: Stand) -> None:
    # Both jobs run for longer than a lease, each on a worker of its own.
    steps = Ask("keeper-killed", "modelslab", "step_s=0.2", steps=int(2.5 * LEASE_S / 0.2))
    native = Ask("native-call", "novita", f"hold_s={2.5 * LEASE_S:g}")
    crowds = [one(whole, steps), one(whole, native)]
    until(lambda: whole.times_begun(steps.prompt) and whole.times_begun(native.prompt), "both run")
    worker = next(w for w in whole.workers if w.worker == _worker_of(whole, steps))
    before = worker.keeper
    assert before is not None
    os.kill(before, signal.SIGKILL)
    kept = [ended(crowd) for crowd in crowds]
    assert worker.keeper not in (None, before)
    check(whole, kept)
    assert (whole.times_begun(steps.prompt), whole.times_begun(native.prompt)) == (1, 1)


def test_a_worker_that_stood_still_cannot_write_over_what_another_makes_of_its_job(whole: Stand) -> None:
    whole.ask_to_stop_at("step")
    ask = Ask("zombie", "modelslab")
    crowd = one(whole, ask)
    zombie = whole.worker_of(whole.stopped_at("step"))
    zombie.signal(signal.SIGSTOP)
    whole.let_go("step")
    whole.ask_to_stop_at("encoding")
    other = whole.worker_of(whole.stopped_at("encoding"))
    assert other is not zombie
    zombie.signal(signal.SIGCONT)
    until(lambda: zombie.jobs == [], "it has come to the end of what it was doing")
    assert status(whole, ask) is JobStatus.ENCODING
    whole.let_go("encoding")
    kept = ended(crowd)
    # It is of use again: with the other one stopped, somebody has to make this.
    assert other.stop() == 0
    [after] = run_all(whole.bases, [Ask("after-the-zombie", "novita")])
    assert whole.record(after.job_id).job.worker == zombie.worker
    other.start()
    check(whole, [kept, after])
    assert whole.times_begun(ask.prompt) == 2
    assert [path.name for path in (whole.state / "results" / "out" / kept.job_id).iterdir()] == ["2"]


def test_a_worker_told_to_end_finishes_a_job_and_hands_a_second_one_back_uncounted(whole: Stand) -> None:
    short = Ask("drained", "modelslab", "step_s=0.2", steps=15)
    crowd = one(whole, short)
    until(lambda: status(whole, short) is JobStatus.RUNNING, "the job runs")
    drained = next(w for w in whole.workers if w.worker == _worker_of(whole, short))
    assert drained.stop() == 0
    kept = ended(crowd)
    assert whole.times_begun(short.prompt) == 1
    drained.start()
    long = Ask("handed-back", "novita", "step_s=0.2", steps=40)
    crowd = one(whole, long)
    until(lambda: status(whole, long) is JobStatus.RUNNING, "the job runs")
    hurried = next(w for w in whole.workers if w.worker == _worker_of(whole, long))
    hurried.signal(signal.SIGTERM)
    time.sleep(2.5)  # a second signal within a second is taken for an echo of the first
    assert hurried.stop() == 0
    hurried.start()
    back = ended(crowd)
    check(whole, [kept, back])
    assert whole.times_begun(long.prompt) == 2
    assert whole.record(back.job_id).job.attempts == 1


def test_an_api_killed_between_the_record_and_the_answer_costs_no_second_job(stand: Stand) -> None:
    stand.start()
    before = record_count(stand)
    stand.ask_to_stop_at("submitted")
    ask = Ask("unanswered", "modelslab")
    crowd = one(stand, ask)
    pid = stand.stopped_at("submitted")
    api = next(api for api in stand.apis if api.pid == pid)
    api.kill()
    stand.let_go("submitted")
    api.start()
    kept = ended(crowd)
    check(stand, [kept])
    assert kept.submits >= 2
    assert record_count(stand) == before + 1
    assert stand.times_begun(ask.prompt) == 1


def test_jobs_are_untouched_when_every_api_is_killed_under_its_waiting_clients(whole: Stand) -> None:
    before = record_count(whole)
    asks = [Ask(f"waiting-{n}", ("huggingface", "universal")[n % 2], "step_s=0.3", steps=4) for n in range(30)]
    with Watch(whole) as watch:
        crowd = Crowd(whole.bases, asks, pause_s=0.1).start()
        until(lambda: record_count(whole) == before + len(asks), "all are in the queue")
        for api in whole.apis:
            api.kill()
        for api in whole.apis:
            api.start()
        kept = crowd.finish(60)
    assert watch.wrong == []
    check(whole, kept)
    assert record_count(whole) == before + len(asks)
    assert {whole.times_begun(ask.prompt) for ask in asks} == {1}


def _worker_of(stand: Stand, ask: Ask) -> str:
    jobs = (stand.records.get(job_id) for job_id in stand.records.open_ids())
    return next(j.job.worker for j in jobs if j and j.job.request.prompts[0].prompt == ask.prompt)
