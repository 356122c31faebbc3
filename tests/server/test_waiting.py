"""Where a job stands and when it will be done, as clients are told, and what it costs to tell two thousand of them."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import quantiles
from typing import Any

import anyio
import pytest

from polyreel.durations import seconds_key
from polyreel.estimates import Estimate
from polyreel.job import JobStatus
from polyreel.records import StoredJob
from server.services import Services
from server.waiting import Waiting
from tests.conftest import Api
from tests.core.jobs import REQUEST, queued

pytestmark = pytest.mark.anyio


def create(api: Api, owner: str = "alice", **fields: Any) -> StoredJob:
    """Take a job in, past the API."""
    return api.records.create(queued(owner=owner, **fields), max_open=100_000)


def learn(api: Api, seconds: float = 20.0) -> None:
    """Say that a job of REQUEST's shape takes so long, and loading its model 7 s."""
    api.records.learn_seconds("ltx-tiny", seconds + 2, shape=seconds_key(REQUEST), own_s=seconds)
    api.leases.learn_swap("ltx-tiny", 7.0)


def beat(api: Api, name: str, *jobs: str, loaded: tuple[str, ...] = ("ltx-tiny",)) -> None:
    """Let a worker say that it lives and which jobs it has."""
    api.leases.beat(name, {"models": ["ltx-tiny", "wan-tiny"], "loaded": list(loaded), "jobs": list(jobs)})


async def estimate(api: Api, stored: StoredJob) -> Estimate:
    services: Services = api.app.state.services
    return await services.estimate(await services.get(stored.job.id, stored.job.owner))


async def test_a_job_stands_where_the_fair_order_puts_it(api: Api) -> None:
    of_alice = [create(api) for _ in range(3)]
    of_bob = create(api, owner="bob")
    places = [(await estimate(api, stored)).position for stored in (*of_alice, of_bob)]
    assert places == [0, 2, 3, 1]


async def test_before_anything_was_measured_the_end_is_unknown(api: Api) -> None:
    first, second = create(api), create(api)
    beat(api, "one")
    assert [await estimate(api, stored) for stored in (first, second)] == [Estimate(0, None), Estimate(1, None)]


async def test_contracts_without_a_word_for_unknown_are_told_ten_seconds_for_each_job(api: Api) -> None:
    services: Services = api.app.state.services
    assert [await services.eta_s(create(api)) for _ in range(3)] == [10, 20, 30]


async def test_while_nobody_serves_the_model_the_end_is_unknown(api: Api) -> None:
    learn(api)
    assert await estimate(api, create(api)) == Estimate(0, None)


async def test_one_worker_takes_one_job_after_the_other(api: Api) -> None:
    learn(api)
    beat(api, "one")
    waiting = [create(api) for _ in range(3)]
    assert [(await estimate(api, stored)).eta_s for stored in waiting] == [20, 40, 60]


async def test_two_workers_share_the_jobs(api: Api) -> None:
    learn(api)
    beat(api, "one")
    beat(api, "two")
    waiting = [create(api) for _ in range(4)]
    assert [(await estimate(api, stored)).eta_s for stored in waiting] == [20, 20, 40, 40]


async def test_a_model_that_is_not_in_memory_is_loaded_first(api: Api) -> None:
    learn(api)
    beat(api, "one", loaded=())
    assert (await estimate(api, create(api))).eta_s == 27


async def test_a_running_job_has_what_is_left_of_it_and_the_others_wait_for_that(api: Api) -> None:
    learn(api)
    running, waiting = create(api), create(api)
    fence = api.claim(running.job.id)
    api.records.advance(running.job.id, fence, JobStatus.RUNNING, progress=75)
    beat(api, "one", running.job.id)
    assert await estimate(api, running) == Estimate(0, 5.0)
    assert await estimate(api, waiting) == Estimate(0, 25.0)


async def test_a_job_that_came_after_the_queue_was_read_is_estimated_all_the_same(api: Api) -> None:
    learn(api)
    beat(api, "one")
    early = [create(api) for _ in range(40)]
    assert (await estimate(api, early[-1])).eta_s == 800
    late = create(api)  # what was read a moment ago does not know it
    assert await estimate(api, late) == Estimate(40, 820.0)
    assert (await estimate(api, create(api, owner="bob"))).position == 1


async def test_a_job_that_has_ended_is_at_its_end(api: Api) -> None:
    stored = create(api)
    api.finish(stored.job.id)
    assert await estimate(api, stored) == Estimate(0, 0.0)


async def test_a_job_that_was_given_back_waits_at_its_old_place(api: Api) -> None:
    first, second = create(api), create(api)
    fence = api.claim(first.job.id)
    api.records.advance(first.job.id, fence, JobStatus.RUNNING, progress=60)
    assert api.records.release(first.job.id, fence, counted=True)
    assert [(await estimate(api, stored)).position for stored in (first, second)] == [0, 1]


async def test_other_models_take_their_time_too(api: Api) -> None:
    learn(api)
    beat(api, "one")
    other = replace(REQUEST, model="wan-tiny")
    api.records.learn_seconds("wan-tiny", 50.0, shape=seconds_key(other), own_s=50.0)
    create(api, request=other)
    # The worker stays with what it has in memory.
    assert (await estimate(api, create(api))).eta_s == 20


async def test_each_dialect_tells_the_estimate_in_its_own_field(api: Api) -> None:
    learn(api)
    beat(api, "one")
    stored = [create(api) for _ in range(2)][1]
    auth = {"Authorization": f"Bearer {api.key}"}
    fetched = await api.http.post(f"/api/v6/video/fetch/{stored.number}", json={"key": api.key})
    result = await api.http.get(f"/v3/async/task-result?task_id={stored.job.id}", headers=auth)
    native = await api.http.get(f"/polyreel/v1/jobs/{stored.job.id}", headers=auth)
    assert fetched.json()["eta"] == 40
    assert result.json()["task"]["eta"] == 40
    assert (native.json()["position"], native.json()["eta_s"]) == (1, 40.0)


async def polls(api: Api, waiting: list[StoredJob]) -> tuple[float, float]:
    """Poll each job; return the commands that Redis ran for one poll, and the 95th percentile of its seconds."""
    auth = {"Authorization": f"Bearer {api.key}"}
    before, seconds = api.records.client.info("stats")["total_commands_processed"], []
    for stored in waiting:
        began = time.perf_counter()
        answer = await api.http.get(f"/polyreel/v1/jobs/{stored.job.id}", headers=auth)
        seconds.append(time.perf_counter() - began)
        assert answer.json()["status"] == "queued"
    commands = api.records.client.info("stats")["total_commands_processed"] - before
    return commands / len(waiting), quantiles(seconds, n=20)[-1]


async def test_a_poll_costs_the_same_whether_twenty_jobs_wait_or_two_thousand(api: Api) -> None:
    learn(api)
    beat(api, "one")
    few = [create(api) for _ in range(20)]
    await estimate(api, few[0])
    few_commands, few_s = await polls(api, few * 5)
    many = few + [create(api) for _ in range(1980)]
    service: Waiting = api.app.state.services.waiting
    service._view = None
    await estimate(api, many[0])  # reads them all, once
    many_commands, many_s = await polls(api, many[::20])
    assert [(await estimate(api, many[place])).position for place in (0, 19, 20, 777, 1999)] == [0, 19, 20, 777, 1999]
    assert (await estimate(api, many[1999])).eta_s == pytest.approx(2000 * 20)
    # One poll reads its record and asks for its place; a reading of everything, once a second, is in it too.
    assert many_commands < 10
    assert few_commands < 10
    assert service._view is not None
    service._view.read_at = service._view.cost_s = 0.0
    again, _ = await polls(api, many[:2])
    assert again < 40, "reading the queue anew asks only for the jobs that are new"
    assert many_s < 10 * few_s


async def test_of_many_polls_at_once_one_reads_the_queue(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(api)
    beat(api, "one")
    stored, read, really = create(api), [], Waiting._read

    async def counted(waiting: Waiting) -> Any:
        read.append(1)
        return await really(waiting)

    monkeypatch.setattr(Waiting, "_read", counted)
    found: list[Estimate] = []

    async def one() -> None:
        found.append(await estimate(api, stored))

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(one)
    assert found == [Estimate(0, 20.0)] * 50
    assert len(read) == 1


@pytest.mark.parametrize(("seconds", "key"), [(119.0, "shared"), (121.0, "")])
async def test_a_job_that_is_expected_to_take_long_shares_no_call(api: Api, seconds: float, key: str) -> None:
    """It is saved on the way instead, for which it must run alone; see `resume_after_s`, 120 s."""
    services: Services = api.app.state.services
    learn(api, seconds)
    stored = await services.submit(REQUEST, dialect="modelslab", owner="alice")
    assert bool(stored.job.batch_key) is bool(key)


async def test_a_model_that_a_worker_is_loading_counts_as_its_own(api: Api) -> None:
    api.leases.beat("one", {"models": ["ltx-tiny"], "loaded": ["wan-tiny"], "loading": "ltx-tiny", "jobs": []})
    learn(api)
    waiting = create(api)
    assert (await estimate(api, waiting)).eta_s == pytest.approx(20.0)
