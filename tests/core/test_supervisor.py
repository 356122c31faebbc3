"""What the supervisor does with its children: real processes that stand in for workers and API, a real Valkey."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from polyreel.broker import start_embedded
from polyreel.children import Deaths, describe_exit
from polyreel.leases import Wishes
from polyreel.queue import Queue
from tests.core.jobs import queued


class Supervised:
    """A supervisor in a process of its own, over stand-ins (`tests.core.stand_ins`)."""

    def __init__(self, folder: Path, drain_s: float, workers_only: bool, acts: dict[str, str], url: str) -> None:
        self.folder = folder
        self.log = folder / "supervisor.log"
        words = [str(folder), str(drain_s), "1" if workers_only else "0", *(f"{k}={v}" for k, v in acts.items())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.core.stand_ins", "supervise", *words],
                cwd=Path(__file__).parents[2],
                env={**os.environ, "REDIS_URL": url},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def lives(self, slot: str) -> list[dict[str, Any]]:
        """Return what each life of a stand-in has written, the first one first."""
        files = sorted(self.folder.glob(f"{slot}.*.json"), key=lambda file: int(file.name.split(".")[-2]))
        return [json.loads(file.read_text()) for file in files]

    def said(self) -> list[str]:
        """Return the lines of the supervisor itself."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("polyreel ")]

    def until(self, condition: Callable[[], object], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s:\n{self.log.read_text()}"
            time.sleep(0.05)

    def until_all_run(self, *slots: str) -> None:
        self.until(lambda: all(self.lives(slot) for slot in slots))


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def supervised(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., Supervised]]:
    """Return a starter of supervisors: `supervised(gpu0="run", gpu1="busy", drain_s=2)`."""
    started: list[Supervised] = []

    def start(*, drain_s: float = 0, workers_only: bool = True, url: str = redis_url, **acts: str) -> Supervised:
        folder = tmp_path / f"supervised{len(started)}"
        folder.mkdir()
        started.append(Supervised(folder, drain_s, workers_only, acts, url))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        for file in one.folder.glob("*.json"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(json.loads(file.read_text())["pid"], signal.SIGKILL)


def test_five_young_deaths_in_a_row_are_a_crash_loop_with_pauses_of_half_a_minute() -> None:
    deaths = Deaths()
    assert [(deaths.after(lived_s=59.9), deaths.is_loop) for _ in range(7)] == [
        (1.0, False),
        (2.0, False),
        (5.0, False),
        (10.0, False),
        (30.0, True),
        (30.0, True),
        (30.0, True),
    ]
    assert deaths.ends_with(lived_s=59.9) is False
    assert deaths.ends_with(lived_s=60.0) is True
    assert (deaths.is_loop, deaths.ends_with(lived_s=61.0), deaths.after(lived_s=5.0)) == (False, False, 1.0)


def test_a_death_after_a_minute_is_none_of_a_loop() -> None:
    deaths = Deaths()
    assert [deaths.after(lived_s=1.0) for _ in range(4)] == [1.0, 2.0, 5.0, 10.0]
    assert deaths.after(lived_s=60.0) == 0.2
    assert [deaths.after(lived_s=1.0) for _ in range(2)] == [1.0, 2.0]
    assert deaths.is_loop is False


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (70, "exit code 70, a job did not heed its time limit"),
        (71, "exit code 71, not fit for another job"),
        (-9, "SIGKILL, which the kernel sends too when memory runs out"),
        (-11, "SIGSEGV"),
        (-40, "signal 40"),
    ],
)
def test_an_end_is_told_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words


def test_each_worker_gets_its_own_environment_a_name_per_start_and_the_common_flags(
    supervised: Callable[..., Supervised], redis_url: str
) -> None:
    one = supervised(gpu0="run", gpu1="run")
    one.until_all_run("gpu0", "gpu1")
    (first,), (other,) = one.lives("gpu0"), one.lives("gpu1")
    assert (first["environment"]["MINE"], other["environment"]["MINE"]) == ("gpu0", "gpu1")
    assert first["environment"]["REDIS_URL"] == redis_url
    assert first["arguments"][:2] == ["--flag=1", "--name"]
    assert first["arguments"][3:] == ["--parent", str(one.process.pid)]
    os.kill(first["pid"], signal.SIGKILL)
    one.until(lambda: len(one.lives("gpu0")) == 2)
    names = [life["arguments"][2] for life in [*one.lives("gpu0"), *one.lives("gpu1")]]
    host = os.uname().nodename
    assert [name[:-8] for name in names] == [f"{host}-gpu0-", f"{host}-gpu0-", f"{host}-gpu1-"]
    assert len(set(names)) == 3
    assert len(one.lives("gpu1")) == 1, "the other one was not touched"
    assert one.lives("serve") + one.lives("courier") == [], "a supervisor of workers has neither"
    assert one.said() == [
        "polyreel worker: 2 workers: gpu0, gpu1",
        "polyreel worker: worker gpu0 ended (SIGKILL, which the kernel sends too when memory runs out); "
        "starting it again in 0.1 s",
    ]


def test_a_crash_loop_is_told_once_leaves_the_others_alone_and_its_end_is_told(
    supervised: Callable[..., Supervised],
) -> None:
    one = supervised(gpu0="die 6", gpu1="run")
    loop = (
        "polyreel worker: worker gpu0 is in a crash loop: it died 5 times in a row within 60 s of its start, the last "
        "time by SIGKILL, which the kernel sends too when memory runs out. Its own last lines above say why. It is "
        "started again every 30 s, and the others go on; when the cause is mended it comes back by itself, unless a "
        "setting was wrong: then stop and start."
    )
    one.until(lambda: loop in one.said())
    assert len(one.lives("gpu0")) == 5
    one.process.send_signal(signal.SIGUSR1)  # the pause is over
    one.until(lambda: len(one.lives("gpu0")) == 6)
    one.until(lambda: not psutil.pid_exists(one.lives("gpu0")[5]["pid"]))  # the supervisor has seen it
    one.process.send_signal(signal.SIGUSR1)
    one.until(lambda: len(one.lives("gpu0")) == 7)
    over = "polyreel worker: worker gpu0 has run for 60 s: its crash loop is over."
    assert over not in one.said()
    one.until(lambda: one.process.send_signal(signal.SIGUSR1) or over in one.said())  # twice will do
    assert one.said().count(loop) == 1
    assert sum(" ended (" in line for line in one.said()) == 4, "in a loop a death is no news"
    assert len(one.lives("gpu1")) == 1
    one.process.terminate()
    assert one.process.wait(30) == 0


def test_the_jobs_of_a_worker_that_died_are_free_at_once_and_not_when_their_lease_has_run_out(
    supervised: Callable[..., Supervised], redis_url: str
) -> None:
    queue = Queue(redis_url, retention_s=60, max_open=10, job_timeout_s=60, patient=False, lease_s=3600)
    one = supervised(gpu0="run", gpu1="run")
    one.until_all_run("gpu0", "gpu1")
    killed, stopped = (queue.submit(queued()).job.id for _ in range(2))
    lives = one.lives("gpu0")[0], one.lives("gpu1")[0]
    for life in lives:
        assert len(queue.leases.claim(life["arguments"][2], Wishes(models=["ltx-tiny"]))) == 1

    def is_free(job_id: str) -> bool:
        stored = queue.records.get(job_id)
        assert stored is not None
        return stored.claimable

    os.kill(lives[0]["pid"], signal.SIGKILL)
    one.until(lambda: is_free(killed))
    one.until(lambda: f"polyreel worker: worker gpu0: its job {killed} is queued" in one.said())
    os.kill(lives[1]["pid"], signal.SIGTERM)
    one.until(lambda: len(one.lives("gpu1")) == 2)
    assert not is_free(stopped), "exit code 0 says that the worker has seen to its jobs itself"


def test_a_queue_that_hangs_keeps_no_child_from_being_restarted_and_no_stop_from_ending(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    broker = start_embedded(tmp_path)
    try:
        one = supervised(url=broker.url, gpu0="run", gpu1="run")
        one.until_all_run("gpu0", "gpu1")
        broker.process.send_signal(signal.SIGSTOP)
        for slot in ("gpu0", "gpu1"):
            os.kill(one.lives(slot)[0]["pid"], signal.SIGKILL)
        one.until(lambda: len(one.lives("gpu0")) == len(one.lives("gpu1")) == 2)
        one.until(lambda: sum("its jobs wait until their leases run out" in line for line in one.said()) == 2)
        one.process.terminate()
        assert one.process.wait(30) == 0
    finally:
        broker.process.send_signal(signal.SIGCONT)
        broker.stop()


def test_a_stop_reaches_all_workers_at_once_then_api_and_courier_and_ends_also_who_does_not_listen(
    supervised: Callable[..., Supervised],
) -> None:
    drain_s = 4.0
    one = supervised(drain_s=drain_s, workers_only=False, gpu0="busy", gpu1="busy", gpu2="deaf")
    one.until_all_run("gpu0", "gpu1", "gpu2", "serve", "courier")
    began = time.monotonic()
    one.process.terminate()
    assert one.process.wait(60) == 0
    took = time.monotonic() - began
    (serve,), (courier,) = one.lives("serve"), one.lives("courier")
    workers = [one.lives(slot)[0] for slot in ("gpu0", "gpu1", "gpu2")]
    assert [len(worker["stops"]) for worker in workers] == [2, 2, 2]
    firsts, seconds = zip(*(worker["stops"] for worker in workers), strict=True)
    assert max(firsts) < min(seconds), "nobody waits for another's drain"
    assert max(worker.get("ended", 0) for worker in workers) < min(serve["stops"][0], courier["stops"][0])
    assert (len(serve["stops"]), len(courier["stops"])) == (1, 1)
    assert drain_s + 5 <= took < 3 * drain_s + 5, "drain_s for all of them together, and 5 s for the deaf one"
    deaf = workers[2]
    for pid in (deaf["pid"], deaf["grandchild"]):
        one.until(lambda pid=pid: has_ended(pid))


def test_the_job_of_a_worker_that_has_to_be_killed_at_a_stop_is_handed_back_and_was_no_attempt(
    supervised: Callable[..., Supervised], redis_url: str
) -> None:
    queue = Queue(redis_url, retention_s=60, max_open=10, job_timeout_s=60, patient=False, lease_s=3600)
    one = supervised(gpu0="deaf")
    one.until_all_run("gpu0")
    job_id = queue.submit(queued()).job.id
    worker = one.lives("gpu0")[0]["arguments"][2]
    assert len(queue.leases.claim(worker, Wishes(models=["ltx-tiny"]))) == 1
    one.process.terminate()
    assert one.process.wait(60) == 0
    stored = queue.records.get(job_id)
    assert stored is not None
    assert (stored.claimable, stored.job.attempts) == (True, 0)
    assert f"polyreel worker: worker: its job {job_id} is queued" in one.said()


def test_a_second_stop_is_passed_on_at_once_to_all(supervised: Callable[..., Supervised]) -> None:
    one = supervised(drain_s=3600, gpu0="busy", gpu1="busy")
    one.until_all_run("gpu0", "gpu1")
    one.process.terminate()
    one.until(lambda: all(one.lives(slot)[0]["stops"] for slot in ("gpu0", "gpu1")))
    one.process.terminate()
    assert one.process.wait(30) == 0
    assert [len(one.lives(slot)[0]["stops"]) for slot in ("gpu0", "gpu1")] == [2, 2]
    assert one.said()[-1] == (
        "polyreel worker: stopping; jobs in progress may take 3600 s more (drain_s), what is not done then is handed "
        "back and runs again at the next start. Stop again to hand it back now."
    )


def test_a_worker_whose_settings_are_wrong_stops_all(supervised: Callable[..., Supervised]) -> None:
    one = supervised(gpu0="exit 2", gpu1="run")
    assert one.process.wait(60) == 2
    assert len(one.lives("gpu0")) == 1
    assert all(not psutil.pid_exists(life["pid"]) for life in one.lives("gpu1"))


def test_workers_without_a_queue_are_told_what_they_need(supervised: Callable[..., Supervised]) -> None:
    one = supervised(url="", gpu0="run", gpu1="run")
    assert one.process.wait(60) == 2
    assert "redis_url: workers need REDIS_URL" in one.log.read_text()
    assert one.lives("gpu0") == []
