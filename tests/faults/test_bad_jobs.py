"""Jobs that kill their workers, that do not end, and that nobody wants any more."""

from __future__ import annotations

import signal
import time

from polyreel.job import JobStatus
from tests.faults.asks import Ask
from tests.faults.clients import Crowd, run_all
from tests.faults.laws import check, check_at_rest
from tests.faults.parts import until
from tests.faults.stand import Stand
from workers.keeper import OVERTIME_S


def tended(stand: Stand, crowd: Crowd) -> None:
    """Start dead workers again, as a supervisor would, until all clients are done."""
    until(lambda: stand.tend() or not crowd.is_busy, "all clients are done")


def test_a_job_that_kills_its_workers_fails_after_three_attempts_and_takes_no_other_with_it(whole: Stand) -> None:
    good = [Ask(f"beside-poison-{n}", "modelslab", "step_s=0.01") for n in range(10)]
    poison = Ask("poison", "modelslab", "die=1")
    for worker in whole.workers:  # or the first jobs would be done before the poison comes
        worker.signal(signal.SIGSTOP)
    submitted = len(whole.records.open_ids())
    asks = [*good[:5], poison, *good[5:]]
    crowd = Crowd(whole.bases, asks, over_s=0.5, pause_s=0.1).start()
    until(lambda: len(whole.records.open_ids()) == submitted + len(asks), "all are in the queue")
    for worker in whole.workers:
        worker.signal(signal.SIGCONT)
    tended(whole, crowd)
    kept = crowd.finish(1)
    check(whole, kept, deaths_allowed=True)
    by_name = {one.ask.name: one for one in kept}
    assert [one.ask.name for one in kept if one.end == "failed"] == ["poison"]
    assert by_name["poison"].reason == "The worker died 3 times while it ran this job; it is not tried again."
    shared = [call for call in whole.calls() if poison.prompt in call["prompts"] and len(call["prompts"]) > 1]
    assert len(shared) <= 1, "a job that was tried before shares no call"


def test_a_job_that_is_made_into_a_file_while_poison_runs_is_not_counted_against(whole: Stand) -> None:
    # With one worker that encodes a job while the next one kills it, both have lost an attempt; were they run the same
    # way again, the innocent one would have had its three attempts as well.
    spare = whole.workers[1]
    whole.wait_for(spare)  # the test before may have just started it
    assert spare.stop() == 0
    whole.workers[0].signal(signal.SIGSTOP)
    innocent = Ask("innocent", "modelslab", headers={"X-Polyreel-Exact": "true"})
    poison = Ask("poison-2", "modelslab", "die=1", headers={"X-Polyreel-Exact": "true"})
    crowd = Crowd(whole.bases, [innocent, poison], over_s=1.0, pause_s=0.1).start()
    until(lambda: len(whole.records.open_ids()) == 2, "both are in the queue")
    whole.workers[0].signal(signal.SIGCONT)

    def one_worker() -> bool:
        if not whole.workers[0].is_running:
            whole.workers[0].start()
        return not crowd.is_busy

    until(one_worker, "all clients are done")
    kept = crowd.finish(1)
    spare.start()
    check(whole, kept, deaths_allowed=True)
    assert [one.end for one in kept] == ["succeeded", "failed"]


def test_jobs_over_their_time_fail_as_timeouts_in_python_and_in_native_code(whole: Stand) -> None:
    limit_s = 2
    apart = whole.make_worker("apart", profile="apart", POLYREEL_JOB_TIMEOUT_S=str(limit_s))
    with whole.running(apart):
        python = Ask("slow-python", "modelslab", "step_s=60", model="apart")
        [slow] = run_all(whole.bases, [python])
        assert apart.lives == 1, "the worker lives"
        native = Ask("slow-native", "modelslab", "hang=1", model="apart")
        began = time.monotonic()
        crowd = Crowd(whole.bases, [native], pause_s=0.1).start()
        until(lambda: not apart.is_running, "the worker is ended")
        took_s = time.monotonic() - began
        apart.start()
        [hung] = crowd.finish(30)
        [after] = run_all(whole.bases, [Ask("after-timeouts", "modelslab", model="apart")])
    assert limit_s + OVERTIME_S <= took_s < 60
    for one in (slow, hung):
        assert (one.end, one.wrong) == ("failed", [])
        job = whole.record(one.job_id).job
        assert (job.error_code, job.attempts) == ("timeout", 1)
    check(whole, [after])


def test_a_waiting_job_is_cancelled_at_once_a_running_one_in_a_step_and_one_being_stored_not_at_all(
    whole: Stand,
) -> None:
    step_s = 0.3
    asks = {
        name: Ask(f"cancel-{name}", "novita", f"step_s={step_s}", steps=50, headers={"X-Polyreel-Exact": "true"})
        for name in ("running", "running-too", "waiting")
    }
    crowds = {}
    for name, ask in asks.items():
        crowds[name] = Crowd(whole.bases, [ask], pause_s=0.1).start()
        until(lambda name=name: crowds[name].kept[0].job_id, "it is acknowledged")
        if name != "waiting":
            until(lambda ask=ask: whole.times_begun(ask.prompt), "it runs")
    assert whole.queue.cancel(crowds["waiting"].kept[0].job_id) == "cancelled"
    [waiting] = crowds["waiting"].finish(10)
    assert whole.times_begun(asks["waiting"].prompt) == 0
    began = time.monotonic()
    for name in ("running", "running-too"):
        assert whole.queue.cancel(crowds[name].kept[0].job_id) == "cancelled"
    [next_one] = run_all(whole.bases, [Ask("after-cancel", "modelslab")])
    freed_s = time.monotonic() - began
    running = [crowds[name].finish(10)[0] for name in ("running", "running-too")]
    assert freed_s < step_s + 2 + 8, "the pipelines of both workers were not held for the 15 s of their jobs"

    whole.ask_to_stop_at("encoding")
    last = Crowd(whole.bases, [Ask("cancel-finishing", "modelslab")], pause_s=0.1).start()
    whole.stopped_at("encoding")
    assert whole.queue.cancel(last.kept[0].job_id) == "finishing"
    whole.let_go("encoding")
    [finished] = last.finish(30)
    check(whole, [next_one, finished])
    for one in (waiting, *running):
        job = whole.record(one.job_id).job
        assert (one.end, job.status, job.outputs) == ("failed", JobStatus.CANCELLED, ())
    assert whole.calls("ended")[-1]["prompts"] != [asks["running"].prompt]
    check_at_rest(whole)


def test_one_sample_of_a_shared_call_is_dropped_and_the_others_are_made(whole: Stand) -> None:
    for worker in whole.workers:
        worker.signal(signal.SIGSTOP)
    asks = [Ask(f"sample-{n}", "modelslab", "step_s=0.3", steps=8) for n in range(3)]
    crowd = Crowd(whole.bases, asks, pause_s=0.1).start()
    until(lambda: all(one.job_id for one in crowd.kept), "all are acknowledged")
    spare = whole.workers[1]
    whole.workers[0].signal(signal.SIGCONT)
    until(lambda: whole.times_begun(asks[0].prompt), "they run")
    spare.signal(signal.SIGCONT)
    [call] = [call for call in whole.calls() if asks[0].prompt in call["prompts"]]
    assert sorted(call["prompts"]) == [ask.prompt for ask in asks], "they share a call"
    assert whole.queue.cancel(crowd.kept[1].job_id) == "cancelled"
    kept = crowd.finish(60)
    check(whole, [kept[0], kept[2]])
    assert whole.record(kept[1].job_id).job.status is JobStatus.CANCELLED
    assert {whole.times_begun(ask.prompt) for ask in asks} == {1}
