"""Redis dies, is away, hangs, loses a reply, and is full."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable

import httpx2
import pytest

from tests.conftest import KEY
from tests.faults.asks import Ask, Kept, mixed
from tests.faults.clients import Crowd, run_all
from tests.faults.laws import Watch, check, record_count
from tests.faults.parts import LEASE_S, base_url, until
from tests.faults.proxy import Proxy
from tests.faults.stand import Stand

#: Every answer is promised within 3 s. Three times as slow a machine may take longer than that over the rest of the
#: request; a client of redis-py as it comes would take 59 s.
ANSWER_S = 6.0

#: How long Redis is away: several leases.
AWAY_S = 2.5 * LEASE_S


def socket_of(stand: Stand) -> str:
    return stand.url.removeprefix("unix://")


def test_no_acknowledged_job_is_lost_when_redis_is_killed_while_they_come(whole: Stand) -> None:
    before = record_count(whole)
    asks = mixed(80, "redis-killed", random.Random(6), 0.01)
    with Watch(whole) as watch:
        crowd = Crowd(whole.bases, asks, over_s=3.0).start()
        until(lambda: record_count(whole) >= before + 20, "some are in the queue")
        whole.kill_valkey()
        whole.start_valkey()
        kept = crowd.finish(90)
    assert watch.wrong == []
    check(whole, kept)
    assert record_count(whole) == before + len(asks), "one job for each request, however often it was sent"


class Prober:
    """Asks an API again and again while Redis is in trouble; keeps status, seconds and headers of every answer."""

    def __init__(self, base: str) -> None:
        self.answers: dict[str, list[tuple[int, float, bool]]] = {}
        self._base = base
        self._over = threading.Event()
        paths = {"/health": self._get, "/ready": self._get, "submit": self._submit, "poll": self._poll}
        self._threads = [threading.Thread(target=self._run, args=item, daemon=True) for item in paths.items()]

    def __enter__(self) -> Prober:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, what: str, ask: Callable[[httpx2.Client, str], httpx2.Response]) -> None:
        with httpx2.Client(base_url=self._base, timeout=60) as http:
            while not self._over.wait(0.2):
                began = time.monotonic()
                answer = ask(http, what)
                said = (answer.status_code, time.monotonic() - began, "retry-after" in answer.headers)
                self.answers.setdefault(what, []).append(said)

    def _get(self, http: httpx2.Client, path: str) -> httpx2.Response:
        return http.get(path)

    def _submit(self, http: httpx2.Client, _what: str) -> httpx2.Response:
        # Without a prompt it would be refused before Redis is asked; with this key a late one is no second job.
        body = {"key": KEY, "prompt": "probe", "num_frames": 2, "height": 64, "width": 64, "instant_response": True}
        return http.post("/api/v6/video/text2video", json=body, headers={"Idempotency-Key": "probe"})

    def _poll(self, http: httpx2.Client, _what: str) -> httpx2.Response:
        return http.get(
            "/v3/async/task-result",
            params={"task_id": "00000000-0000-4000-8000-000000000000"},
            headers={"Authorization": f"Bearer {KEY}"},
        )


@pytest.mark.parametrize("trouble", ["away", "hung"])
def test_while_redis_is_in_trouble_answers_come_in_time_and_the_running_job_is_not_run_twice(
    whole: Stand, trouble: str
) -> None:
    # Its denoising ends while Redis is away, and there is a second one to go on with.
    running = Ask(f"running-{trouble}", "modelslab", "step_s=0.2", steps=10)
    waiting = [Ask(f"waiting-{trouble}-{n}", "novita", "step_s=0.05") for n in range(6)]
    with Watch(whole) as watch:
        crowd = Crowd(whole.bases, [running, *waiting], pause_s=0.5).start()
        until(lambda: whole.times_begun(running.prompt) and all(one.job_id for one in crowd.kept), "one runs")
        if trouble == "away":
            whole.kill_valkey()
        else:
            whole.valkey.process.send_signal(signal.SIGSTOP)
        with Prober(base_url(whole.apis[0])) as prober:
            time.sleep(AWAY_S)
        if trouble == "away":
            whole.start_valkey()
        else:
            whole.valkey.process.send_signal(signal.SIGCONT)
        kept = crowd.finish(60)
    assert watch.wrong == []
    _settle(whole, "probe")
    check(whole, kept)
    assert whole.times_begun(running.prompt) == 1
    slowest = {what: max(seconds for _, seconds, _ in answers) for what, answers in prober.answers.items()}
    assert max(slowest.values()) < ANSWER_S, slowest
    assert {status for status, _, _ in prober.answers["/health"]} == {200}
    for what in ("/ready", "submit", "poll"):
        # The last ones may have been answered when it was back already.
        assert [answer[::2] for answer in prober.answers[what][1:-1]] == [(503, True)] * len(
            prober.answers[what][1:-1]
        ), f"{what} is told to come again"
    assert until(lambda: httpx2.get(f"{base_url(whole.apis[0])}/ready").status_code == 200, "it is ready") < ANSWER_S


def test_a_submit_whose_reply_is_lost_is_one_job(whole: Stand) -> None:
    before = record_count(whole)
    with Proxy(socket_of(whole)) as proxy:
        behind = whole.make_api("behind-proxy", url=proxy.url)
        with whole.running(behind):
            asks = [Ask(f"reply-lost-{dialect}", dialect, is_keyed=False) for dialect in ("modelslab", "novita")]
            kept: list[Kept] = []
            for ask in asks:
                proxy.lose_the_reply_to(ask.prompt)
                kept += run_all([base_url(behind)], [ask])
    assert proxy.lost == len(asks)
    check(whole, kept)
    assert record_count(whole) == before + len(asks)
    assert [whole.times_begun(ask.prompt) for ask in asks] == [1] * len(asks)


def test_a_worker_whose_replies_are_lost_runs_and_ends_its_job_once(whole: Stand) -> None:
    asks = {what: Ask(f"lossy-{what}", "modelslab", model="apart") for what in ("claim", "end")}
    with Proxy(socket_of(whole)) as proxy:
        apart = whole.make_worker("apart-lossy", url=proxy.url, profile="apart")
        with whole.running(apart):
            apart.signal(signal.SIGSTOP)
            crowd = Crowd(whole.bases, [asks["claim"]], pause_s=0.1).start()
            until(lambda: crowd.kept[0].job_id, "it is acknowledged")
            proxy.lose_the_reply_with(crowd.kept[0].job_id)
            apart.signal(signal.SIGCONT)
            kept = crowd.finish(30)
            assert proxy.lost == 1
            proxy.lose_the_reply_to('"status": "succeeded"')
            kept += run_all(whole.bases, [asks["end"]])
    assert proxy.lost == 2
    check(whole, kept)
    for one in kept:
        assert whole.times_begun(one.ask.prompt) == 1
        assert whole.record(one.job_id).job.attempts == 1


def test_a_worker_that_is_cut_off_from_redis_loses_its_job_to_another_and_is_of_use_again(whole: Stand) -> None:
    ask = Ask("cut-off", "novita", f"step_s={LEASE_S / 2}", steps=4, model="apart")
    with Proxy(socket_of(whole)) as proxy:
        cut_off = whole.make_worker("cut-off", url=proxy.url, profile="apart")
        other = whole.make_worker("not-cut-off", profile="apart")
        with whole.running(cut_off):
            crowd = Crowd(whole.bases, [ask], pause_s=0.1).start()
            until(lambda: whole.times_begun(ask.prompt), "it runs")
            proxy.cut()
            with whole.running(other):
                until(lambda: whole.record(crowd.kept[0].job_id).job.worker == other.worker, "another has it")
                proxy.mend()
                kept = crowd.finish(60)
                assert whole.record(kept[0].job_id).job.worker == other.worker
            kept += run_all(whole.bases, [Ask("after-the-cut", "modelslab", model="apart")])
            assert whole.record(kept[1].job_id).job.worker == cut_off.worker
    check(whole, kept)
    assert whole.times_begun(ask.prompt) == 2
    assert whole.record(kept[0].job_id).job.attempts == 2
    assert [path.name for path in (whole.state / "results" / "out" / kept[0].job_id).iterdir()] == ["2"]


def test_a_full_redis_refuses_submits_and_lets_what_it_has_come_to_its_end(whole: Stand) -> None:
    asks = [Ask(f"before-full-{n}", "modelslab", "step_s=0.2", steps=5) for n in range(4)]
    crowd = Crowd(whole.bases, asks, pause_s=0.2).start()
    until(lambda: all(one.job_id for one in crowd.kept) and whole.times_begun(asks[0].prompt), "they are in")
    whole.client.config_set("maxmemory", "1")
    try:
        body = {"key": KEY, "prompt": "one too many", "instant_response": True}
        refused = httpx2.post(f"{whole.bases[0]}/api/v6/video/text2video", json=body, timeout=30)
        kept = crowd.finish(60)
    finally:
        whole.client.config_set("maxmemory", "0")
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    [after] = run_all(whole.bases, [Ask("after-full", "novita")])
    check(whole, [*kept, after])
    assert {whole.times_begun(ask.prompt) for ask in asks} == {1}


def _settle(stand: Stand, prompt: str) -> None:
    """Wait until the probes' own jobs have ended."""
    until(
        lambda: all(
            (stored := stand.records.get(job_id)) is None or stored.job.request.prompts[0].prompt != prompt
            for job_id in stand.records.open_ids()
        ),
        f"no {prompt} is unfinished",
    )
