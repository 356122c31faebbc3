"""Webhooks when the courier dies, stops or is busy: each comes all the same, under one id, and no job is the slower."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from polyreel.job import VideoJob, new_job
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from polyreel.signing import message_id
from tests.faults.parts import until
from tests.faults.stand import Stand
from tests.server.receivers import Receiver, answering, hanging


def job(webhook: str = "", prompt: str = "clip") -> VideoJob:
    request = VideoRequest(
        model="first", prompts=(PromptSpan(prompt, 2),), height=64, width=64, fps=8.0, num_inference_steps=4,
        guidance_scale=3.0, seed=1, outputs=(OutputSpec("gif", 8.0),),
    )  # fmt: skip
    made = new_job(request, dialect="native", owner="alice", extensions=("gif",))
    return replace(made, webhook=webhook, base_url="http://api.test")


def ended(stand: Stand, webhook: str) -> str:
    """Return a job that was cancelled, which is told as any end."""
    job_id = stand.queue.submit(job(webhook)).job.id
    assert stand.queue.cancel(job_id) == "cancelled"
    return job_id


def is_delivered(stand: Stand, job_id: str) -> bool:
    return stand.queue.webhooks.deliveries(job_id).state == "delivered"


@pytest.mark.parametrize(
    ("main", "within_s"),
    [
        pytest.param("tests.faults.courier", 10, id="in a hurry"),
        pytest.param("server.courier", 60, marks=pytest.mark.slow, id="with its own lease"),
    ],
)
def test_a_message_whose_courier_is_killed_comes_again_under_the_same_id(
    stand: Stand, main: str, within_s: float
) -> None:
    stand.courier.kill()
    courier = stand.make_courier("courier-killed", main)
    with Receiver(hanging) as receiver, stand.running(courier):
        job_id = ended(stand, receiver.url)
        until(lambda: receiver.count() == 1, "the message is under way", 20)
        courier.kill()
        receiver.answers = answering(204)
        courier.start()
        assert until(lambda: is_delivered(stand, job_id), "it is delivered", within_s) > 0
        assert [got.headers["webhook-id"] for got in receiver.received] == [message_id(job_id)] * 2
    assert stand.queue.webhooks.deliveries(job_id).attempts == 2


@pytest.mark.slow
def test_a_stop_ends_the_courier_soon_and_the_next_one_goes_on(stand: Stand) -> None:
    with Receiver(hanging) as stuck, Receiver(answering(204)) as fine:
        first = ended(stand, stuck.url)
        until(lambda: stuck.count() == 1, "the message is under way", 20)
        began = time.monotonic()
        assert stand.courier.stop() == 0
        assert time.monotonic() - began < 8
        second = ended(stand, fine.url)
        stuck.answers = answering(204)
        stand.courier.start()
        until(lambda: is_delivered(stand, first) and is_delivered(stand, second), "both are delivered", 20)


@pytest.mark.slow
def test_a_courier_that_was_started_while_redis_was_away_goes_on_when_it_is_back(stand: Stand) -> None:
    with Receiver(answering(204)) as receiver:
        stand.courier.kill()
        job_id = ended(stand, receiver.url)
        stand.kill_valkey()
        try:
            stand.courier.start()
            time.sleep(1.5)
            assert stand.courier.is_running
        finally:
            stand.start_valkey()
        until(lambda: is_delivered(stand, job_id), "it is delivered", 20)


@pytest.mark.slow
def test_a_hundred_receivers_that_hang_make_no_job_slower(whole: Stand) -> None:
    """Jobs sleep most of their time, so what a busy machine does to one round it does to the other."""

    def round_s(webhooks: Sequence[str]) -> float:
        began = time.monotonic()
        ids = [whole.queue.submit(job(webhook, f"clip {n} step_s=0.2")).job.id for n, webhook in enumerate(webhooks)]
        until(lambda: all(whole.record(job_id).job.status.is_terminal for job_id in ids), "all jobs end", 60)
        assert {whole.record(job_id).job.status.value for job_id in ids} == {"succeeded"}
        return time.monotonic() - began

    whole.courier.kill()
    courier = whole.make_courier("courier-itself", "server.courier")
    with Receiver(hanging) as stuck, Receiver(answering(204)) as fine, whole.running(courier):
        alone_s = round_s([""] * 8)
        waiting = [ended(whole, stuck.url) for _ in range(100)]
        beside_s = round_s([fine.url] * 8)
        assert beside_s < 1.2 * alone_s + 0.5, (alone_s, beside_s)
        until(lambda: fine.count() == 8, "all who take their message get it", 5)
        assert stuck.most_at_once <= 2
        for job_id in waiting:
            whole.records.delete(job_id)
