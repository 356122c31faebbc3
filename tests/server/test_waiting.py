"""Where a job stands and when it will be done, as clients are told, and what it costs to tell two thousand of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import anyio
import pytest

from polyreel.durations import seconds_key
from polyreel.errors import QueueUnavailable
from polyreel.estimates import Estimate
from polyreel.job import JobStatus
from polyreel.keys import Caller
from polyreel.records import SECONDS, StoredJob, job_key
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
    api.leases.beat(name, {"models": ["ltx-tiny", "atelier"], "loaded": list(loaded), "jobs": list(jobs)})


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
    other = replace(REQUEST, model="atelier")
    api.records.learn_seconds("atelier", 50.0, shape=seconds_key(other), own_s=50.0)
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


async def polls(api: Api, waiting: list[StoredJob]) -> float:
    """Poll each job; return the commands that Redis ran for one poll."""
    auth = {"Authorization": f"Bearer {api.key}"}
    before = api.records.client.info("stats")["total_commands_processed"]
    for stored in waiting:
        answer = await api.http.get(f"/polyreel/v1/jobs/{stored.job.id}", headers=auth)
        assert answer.json()["status"] == "queued"
    return (api.records.client.info("stats")["total_commands_processed"] - before) / len(waiting)


async def test_a_poll_costs_the_same_whether_twenty_jobs_wait_or_two_thousand(api: Api) -> None:
    learn(api)
    beat(api, "one")
    few = [create(api) for _ in range(20)]
    await estimate(api, few[0])
    few_commands = await polls(api, few * 5)
    many = few + [create(api) for _ in range(1980)]
    service: Waiting = api.app.state.services.waiting
    service._view = None
    beat(api, "one")  # so many submits may take longer than a heartbeat lasts
    assert (await estimate(api, many[1999])).eta_s == pytest.approx(2000 * 20)  # reads them all, once
    many_commands = await polls(api, many[::20])
    assert [(await estimate(api, many[place])).position for place in (0, 19, 20, 777, 1999)] == [0, 19, 20, 777, 1999]
    # One poll reads its record and asks for its place; a reading of everything, once a second, is in it too.
    assert many_commands < 10
    assert few_commands < 10
    assert service._view is not None
    service._view.read_at = service._view.cost_s = 0.0
    again = await polls(api, many[:2])
    assert again < 40, "reading the queue anew asks only for the jobs that are new"


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


@pytest.mark.parametrize(
    ("seconds", "after_s", "is_saved"),
    [(119.0, 120.0, False), (121.0, 120.0, True), (None, 120.0, True), (121.0, inf, False), (None, inf, False)],
)
async def test_a_job_that_takes_long_or_nobody_knows_how_long_is_saved_and_shares_no_call(
    make_api: Callable[..., Api], seconds: float | None, after_s: float, is_saved: bool
) -> None:
    """The submit decides, and the record says it: whoever runs the job saves it exactly when it runs alone."""
    api = make_api(resume_after_s=after_s)
    if seconds is not None:
        learn(api, seconds)
    stored = await api.app.state.services.submit(REQUEST, dialect="modelslab", caller=Caller("alice"))
    kept = api.records.get(stored.job.id)
    assert kept is not None
    assert (kept.job.saved, len(kept.job.batch_key)) == ((True, 0) if is_saved else (False, 16))


async def test_what_a_job_of_that_shape_took_decides_over_what_its_model_takes(api: Api) -> None:
    learn(api, 500.0)
    quick = replace(REQUEST, num_inference_steps=1)
    api.records.learn_seconds("ltx-tiny", 500.0, shape=seconds_key(quick), own_s=3.0)
    services: Services = api.app.state.services
    saved = [
        (await services.submit(request, dialect="modelslab", caller=Caller("alice"))) for request in (REQUEST, quick)
    ]
    assert [stored.job.saved for stored in saved] == [True, False]


#: What may stand in a record that this version cannot read, by its fields.
UNREADABLE = {
    "a request of a newer version": {"request": json.dumps(REQUEST.to_dict() | {"camera_path": "orbit"})},
    "a damaged request": {"request": '{"model": "ltx-'},
    "a request that is no object": {"request": "[]"},
    "a damaged time": {"created_at": "soon"},
    "a time that is none": {"created_at": "nan"},
}


@pytest.mark.parametrize("fields", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_waiting_job_that_cannot_be_read_keeps_its_place_and_breaks_nothing(
    api: Api, fields: dict[str, str]
) -> None:
    learn(api)
    beat(api, "one")
    first, unreadable, last = create(api), create(api), create(api)
    other = create(api, request=replace(REQUEST, model="atelier"))
    api.records.client.hset(job_key(unreadable.job.id), mapping=fields)
    assert await estimate(api, first) == Estimate(0, 20.0)
    # Nobody knows how long the one in the middle takes: it counts as the others do.
    assert await estimate(api, last) == Estimate(2, 60.0)
    assert (await estimate(api, other)).position == 0
    submitted = await api.app.state.services.submit(REQUEST, dialect="modelslab", caller=Caller("alice"))
    assert (submitted.job.status, submitted.job.saved) == (JobStatus.QUEUED, False)


@pytest.mark.parametrize(
    "fields",
    [*UNREADABLE.values(), {"status": "upscaling"}, {"outputs": '[{"depth": 1}]'}],
    ids=[*UNREADABLE.keys(), "a status of a newer version", "outputs of a newer version"],
)
async def test_a_running_job_that_cannot_be_read_breaks_nothing(api: Api, fields: dict[str, str]) -> None:
    learn(api)
    running, other, waiting = create(api), create(api), create(api)
    api.records.advance(running.job.id, api.claim(running.job.id), JobStatus.RUNNING, progress=50)
    api.records.client.hset(job_key(running.job.id), mapping=fields)
    beat(api, "one", running.job.id)
    assert [(await estimate(api, stored)).position for stored in (other, waiting)] == [0, 1]
    submitted = await api.app.state.services.submit(REQUEST, dialect="modelslab", caller=Caller("alice"))
    assert submitted.job.saved is False


async def test_a_running_job_that_cannot_be_read_counts_as_the_others_do(api: Api) -> None:
    learn(api)
    running, waiting = create(api), create(api)
    api.records.advance(running.job.id, api.claim(running.job.id), JobStatus.RUNNING)
    api.records.client.hset(job_key(running.job.id), "request", "{")
    beat(api, "one", running.job.id)
    assert await estimate(api, waiting) == Estimate(0, 40.0)


async def test_whatever_fails_while_the_length_of_a_job_is_looked_up_it_is_taken_in(api: Api) -> None:
    learn(api)
    api.records.client.hset(SECONDS, "atelier", "many")  # no version of ours writes this
    stored = await api.app.state.services.submit(REQUEST, dialect="modelslab", caller=Caller("alice"))
    assert (stored.job.status, stored.job.saved, stored.job.batch_key) == (JobStatus.QUEUED, True, "")


async def test_while_redis_is_away_a_submit_says_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_waiting: Waiting, _request: object) -> None:
        raise QueueUnavailable("The queue does not answer right now.")

    monkeypatch.setattr(Waiting, "own_s", away)
    with pytest.raises(QueueUnavailable):
        await api.app.state.services.submit(REQUEST, dialect="modelslab", caller=Caller("alice"))
    assert api.records.open_ids() == []


async def test_a_model_that_a_worker_is_loading_counts_as_its_own(api: Api) -> None:
    api.leases.beat("one", {"models": ["ltx-tiny"], "loaded": ["atelier"], "loading": "ltx-tiny", "jobs": []})
    learn(api)
    waiting = create(api)
    assert (await estimate(api, waiting)).eta_s == pytest.approx(20.0)
