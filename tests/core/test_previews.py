"""Previews: of jobs in the making alone, by whoever has them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from polyreel.job import JobStatus
from polyreel.leases import Claim
from polyreel.previews import Preview, parse_preview, preview_key, preview_text
from polyreel.queue import Queue
from tests.core.jobs import claim, open_queue, take

JPEG = b"\xff\xd8\x00 not text \xff\xd9"


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    queue.records.client.close()


def show(queue: Queue, *shown: tuple[Claim, bytes], step: int = 1, status: JobStatus = JobStatus.RUNNING) -> None:
    """Report a step of jobs with a picture of each, as their worker does."""
    queue.records.advance_all(
        [(claim.job_id, claim.fence) for claim, _ in shown],
        status,
        "one",
        previews={claim.job_id: preview_text(Preview(jpeg, step)) for claim, jpeg in shown},
        step=step,
    )


def read(queue: Queue, claim: Claim) -> Preview | None:
    return parse_preview(queue.records.client.get(preview_key(claim.job_id)))


def test_the_newest_preview_of_a_job_is_read(queue: Queue) -> None:
    one, two = take(queue), take(queue)
    show(queue, (one, b"old"), (two, JPEG))
    show(queue, (one, JPEG), step=2)
    assert (read(queue, one), read(queue, two)) == (Preview(JPEG, 2), Preview(JPEG, 1))
    assert 590 < queue.records.client.ttl(preview_key(one.job_id)) <= 600


def test_a_step_without_a_picture_leaves_the_last_one(queue: Queue) -> None:
    taken = take(queue)
    show(queue, (taken, JPEG))
    queue.records.advance(taken.job_id, taken.fence, JobStatus.RUNNING, step=2)
    assert read(queue, taken) == Preview(JPEG, 1)


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED])
def test_a_preview_goes_with_the_end_of_its_job(queue: Queue, status: JobStatus) -> None:
    taken = take(queue)
    show(queue, (taken, JPEG))
    show(queue, (taken, JPEG), status=status)
    assert read(queue, taken) is None


def test_a_cancelled_job_has_no_preview_however_late_its_worker_hears_of_it(queue: Queue) -> None:
    taken = take(queue)
    show(queue, (taken, JPEG))
    queue.cancel(taken.job_id)
    assert read(queue, taken) is None
    show(queue, (taken, JPEG), step=2)
    assert read(queue, taken) is None


def test_who_has_lost_a_job_shows_nothing_of_it(queue: Queue) -> None:
    lost = take(queue)
    queue.records.release(lost.job_id, lost.fence, counted=False)
    show(queue, (lost, b"given back"))
    assert read(queue, lost) is None
    [newer] = claim(queue, "two")
    show(queue, (lost, b"somebody else's"), step=2)
    show(queue, (newer, JPEG))
    assert read(queue, lost) == Preview(JPEG, 1)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"step": 1}', json.dumps({"step": 1, "jpeg": "no base64!"})])
def test_what_cannot_be_read_is_no_preview(text: str | None) -> None:
    assert parse_preview(text) is None
