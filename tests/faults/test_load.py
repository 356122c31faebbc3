"""Many clients, many waiting jobs, limits, fairness, and clients that hang up."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from dataclasses import replace
from statistics import median, quantiles

import httpx2
import psutil

from polyreel.job import JobStatus
from polyreel.queue import Queue
from tests.conftest import KEY, OTHER_KEY
from tests.core.jobs import REQUEST, queued
from tests.faults.asks import Ask, mixed
from tests.faults.clients import Crowd, run_all
from tests.faults.laws import Watch, check, check_at_rest, record_count
from tests.faults.parts import base_url, until
from tests.faults.stand import Stand

FIRST = replace(REQUEST, model="first")


def test_two_hundred_clients_at_once_get_their_videos_each_made_once(whole: Stand) -> None:
    before = record_count(whole)
    asks = mixed(200, "crowd", random.Random(1))
    with Watch(whole) as watch:
        kept = run_all(whole.bases, asks, 120, pause_s=0.5)
    assert watch.wrong == []
    check(whole, kept)
    assert record_count(whole) == before + len(asks)
    begun = [prompt for call in whole.calls() for prompt in call["prompts"] if prompt.startswith("clip crowd-")]
    assert sorted(begun) == sorted(ask.prompt for ask in asks)
    for api in whole.apis:
        process = psutil.Process(api.pid)
        assert process.memory_info().rss < 300e6
        # What is left are the listener, and the pools of connections to Redis.
        until(
            lambda process=process: {c.status for c in process.net_connections("tcp")} == {psutil.CONN_LISTEN},
            "the connections of the clients that went are closed",
            30,
        )
        assert len(process.net_connections("unix")) < 100
    # A submit writes a record, so it may take longer than a request that does nothing; not by orders of magnitude.
    submits = [seconds for one in kept if one.ask.dialect in ("modelslab", "novita") for seconds in one.submit_s]
    assert quantiles(submits, n=20)[-1] < 10, "95 % of the submits were answered while all came at once"


def test_a_poll_takes_no_longer_with_two_thousand_waiting_jobs(stand: Stand) -> None:
    database = f"{stand.url}?db=1"
    api = stand.make_api("crowded", url=database, POLYREEL_MAX_QUEUED="3000")
    with stand.running(api):
        queue = Queue(database, retention_s=60, max_open=3000, job_timeout_s=60, patient=True)
        jobs = [queue.submit(queued(FIRST)).job]

        def poll(job_id: str) -> float:
            began = time.monotonic()
            answer = http.get("/v3/async/task-result", params={"task_id": job_id})
            took = time.monotonic() - began
            assert (answer.status_code, answer.json()["task"]["status"]) == (200, "TASK_STATUS_QUEUED")
            return took

        with httpx2.Client(base_url=base_url(api), headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as http:
            alone = [poll(jobs[0].id) for _ in range(60)]
            jobs += [queue.submit(queued(FIRST)).job for _ in range(1999)]
            crowded = [poll(random.choice(jobs).id) for _ in range(60)]
        assert median(crowded) < 5 * median(alone), "one look at a job does not read the others"
        memory = queue.records.client.info("memory")["used_memory_dataset"]
        assert memory / len(jobs) < 8192
        queue.records.client.flushdb()


def test_exactly_as_many_jobs_are_admitted_as_there_is_room_for(stand: Stand) -> None:
    database = f"{stand.url}?db=2"
    apis = [stand.make_api(f"full{n}", url=database, POLYREEL_MAX_QUEUED="100") for n in range(2)]

    async def submit_all() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=None)) as http:

            async def submit(n: int) -> httpx2.Response:
                base, prompt = base_url(apis[n % 2]), f"clip {n}"
                if n % 4 < 2:
                    body = {"key": KEY, "prompt": prompt, "instant_response": True}
                    return await http.post(f"{base}/api/v6/video/text2video", json=body)
                body = {
                    "model_name": "first.safetensors", "height": 256, "width": 256, "steps": 2,
                    "prompts": [{"frames": 8, "prompt": prompt}],
                }  # fmt: skip
                headers = {"Authorization": f"Bearer {OTHER_KEY}"}
                return await http.post(f"{base}/v3/async/txt2video", json=body, headers=headers)

            return list(await asyncio.gather(*(submit(n) for n in range(150))))

    with stand.running(*apis):
        answers = asyncio.run(submit_all())
    admitted = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(admitted), len(refused)) == (100, 50)
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    shapes = {tuple(sorted(answer.json())) for answer in refused}
    assert shapes <= {("code", "message", "metadata", "reason"), ("message", "retry_after", "status")}


def test_a_single_job_of_one_key_starts_soon_however_many_another_key_has(whole: Stand) -> None:
    many = [Ask(f"bulk-{n}", "modelslab", "step_s=0.05", owner="alice") for n in range(60)]
    crowd = Crowd(whole.bases, many, pause_s=2).start()
    until(lambda: all(one.job_id for one in crowd.kept), "all are acknowledged")
    [single] = run_all(whole.bases, [Ask("single", "modelslab", owner="bob")])
    begun = [call["prompts"] for call in whole.calls()]
    submitted = whole.record(single.job_id).job.created_at
    started = whole.record(single.job_id).job.started_at
    between = [
        job
        for one in crowd.kept
        if submitted < (job := whole.record(one.job_id).job).started_at < started and job.status != JobStatus.QUEUED
    ]
    claims = {job.started_at for job in between}
    assert len(claims) <= 3, f"claims of the other key's jobs before it: {len(claims)}"
    assert any(single.ask.prompt in prompts for prompts in begun)
    for one in crowd.kept:
        whole.queue.cancel(one.job_id)
    kept = crowd.finish(60)
    assert {one.end for one in kept} <= {"succeeded", "failed"}
    check(whole, [single])


def test_clients_that_hang_up_end_their_own_jobs_and_leave_no_task_behind(whole: Stand) -> None:
    before = len(whole.records.open_ids())
    for worker in whole.workers:  # so that none of the jobs ends before its client has gone
        worker.signal(signal.SIGSTOP)
    asks = [Ask(f"hangs-up-{n}", "huggingface", is_keyed=False) for n in range(50)]
    leaving = Crowd(whole.bases, asks[::2]).start()
    staying = Crowd(whole.bases, asks[1::2]).start()
    until(lambda: len(whole.records.open_ids()) == before + len(asks), "all are in the queue")
    leaving.finish(0)
    until(lambda: len(whole.records.open_ids()) == before + len(asks) // 2, "those of the clients that went are ended")
    for worker in whole.workers:
        worker.signal(signal.SIGCONT)
    kept = staying.finish(60)
    check(whole, kept)
    begun = {prompt for call in whole.calls() for prompt in call["prompts"]}
    assert begun & {ask.prompt for ask in asks} == {ask.prompt for ask in asks[1::2]}
    check_at_rest(whole)
    for base in whole.bases:
        until(
            lambda base=base: httpx2.get(f"{base}/faults/process").json()["tasks"] <= 10, f"{base} has no task left", 30
        )
