"""Clocks that differ between machines, and that jump."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.faults.asks import Ask
from tests.faults.clients import Crowd, run_all
from tests.faults.laws import Watch, check
from tests.faults.parts import LEASE_S, base_url, until
from tests.faults.stand import Stand


@contextmanager
def shifted(stand: Stand, folder: Path, *, api_s: float, worker_s: float) -> Iterator[tuple[str, Path, Path]]:
    """Have an API process and a worker of the model "apart" whose clocks are ahead.

    Yields the address of the API, and the files that say how far each clock is ahead.
    """
    folder.joinpath("api").write_text(str(api_s))
    folder.joinpath("worker").write_text(str(worker_s))
    api = stand.make_api(f"api{api_s:+g}", FAULTS_CLOCK=str(folder / "api"))
    worker = stand.make_worker(f"worker{worker_s:+g}", profile="apart", FAULTS_CLOCK=str(folder / "worker"))
    with stand.running(api, worker):
        yield base_url(api), folder / "api", folder / "worker"


def api_is_ahead_s(base: str) -> float:
    return float(httpx2.get(f"{base}/faults/process").json()["clock"]) - time.time()


@pytest.mark.parametrize("ahead_s", [120.0, -120.0])
def test_jobs_run_once_when_the_clocks_of_api_and_worker_are_two_minutes_off_in_opposite_ways(
    whole: Stand, tmp_path: Path, ahead_s: float
) -> None:
    asks = [Ask(f"clock{ahead_s:+g}-{d}", d, model="apart") for d in ("huggingface", "modelslab", "novita")]
    # Longer than a lease, so that somebody with another idea of the time could think that it has run out.
    asks.append(Ask(f"clock{ahead_s:+g}-long", "novita", f"step_s={LEASE_S / 2}", steps=3, model="apart"))
    with shifted(whole, tmp_path, api_s=ahead_s, worker_s=-ahead_s) as (base, _, _):
        with Watch(whole) as watch:
            kept = run_all([base], asks)
        assert watch.wrong == []
        assert api_is_ahead_s(base) == pytest.approx(ahead_s, abs=60)
        check(whole, kept)
    [call] = [call for call in whole.calls("ended") if asks[-1].prompt in call["prompts"]]
    assert call["clock"] - time.time() == pytest.approx(-ahead_s, abs=60)
    for one in kept:
        job = whole.record(one.job_id).job
        assert (whole.times_begun(one.ask.prompt), job.attempts) == (1, 1)
        assert job.created_at <= job.started_at <= job.ended_at
        assert job.ended_at == pytest.approx(time.time(), abs=60), "the times are of Redis' clock"
        assert all(seconds >= 0 for seconds in job.timings.values())
        assert whole.client.ttl(f"polyreel:job:{one.job_id}") > 3000


def test_a_running_job_is_not_disturbed_when_the_clocks_jump_by_an_hour(whole: Stand, tmp_path: Path) -> None:
    ask = Ask("clock-jumps", "novita", f"step_s={LEASE_S / 2}", steps=5, model="apart")
    with shifted(whole, tmp_path, api_s=0, worker_s=0) as (base, *clocks), Watch(whole) as watch:
        crowd = Crowd([base], [ask], pause_s=0.1).start()
        until(lambda: whole.times_begun(ask.prompt), "it runs")
        for ahead_s in (3600, -3600):
            for clock in clocks:
                clock.write_text(str(ahead_s))
            assert api_is_ahead_s(base) == pytest.approx(ahead_s, abs=60)
            time.sleep(LEASE_S)
        for clock in clocks:
            clock.write_text("0")
        kept = crowd.finish(60)
    assert watch.wrong == []
    check(whole, kept)
    assert whole.times_begun(ask.prompt) == 1
    assert all(seconds >= 0 for seconds in whole.record(kept[0].job_id).job.timings.values())
