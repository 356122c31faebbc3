"""Previews: of jobs in the making alone, by whoever has them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from polyreel.job import JobStatus
from polyreel.previews import Preview, Previews, parse_preview, preview_key
from polyreel.queue import Queue
from tests.core.jobs import claim, open_queue, take

JPEG = b"\xff\xd8\x00 not text \xff\xd9"


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    queue.records.client.close()


@pytest.fixture
def previews(queue: Queue) -> Previews:
    return Previews(queue.records.client)


def test_the_newest_preview_of_a_job_is_read(queue: Queue, previews: Previews) -> None:
    one, two = take(queue), take(queue)
    previews.write({one: b"old", two: JPEG}, 1)
    previews.write({one: JPEG}, 2)
    assert (previews.read(one.job_id), previews.read(two.job_id)) == (Preview(JPEG, 2), Preview(JPEG, 1))
    assert 590 < queue.records.client.ttl(preview_key(one.job_id)) <= 600


def test_nothing_to_show_is_nothing_written(queue: Queue, previews: Previews) -> None:
    taken = take(queue)
    previews.write({}, 1)
    assert previews.read(taken.job_id) is None


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED])
def test_a_preview_goes_with_the_end_of_its_job(queue: Queue, previews: Previews, status: JobStatus) -> None:
    taken = take(queue)
    previews.write({taken: JPEG}, 1)
    queue.records.advance(taken.job_id, taken.fence, status)
    assert previews.read(taken.job_id) is None


def test_a_cancelled_job_has_no_preview_however_late_its_worker_hears_of_it(queue: Queue, previews: Previews) -> None:
    taken = take(queue)
    previews.write({taken: JPEG}, 1)
    queue.cancel(taken.job_id)
    assert previews.read(taken.job_id) is None
    previews.write({taken: JPEG}, 2)
    assert previews.read(taken.job_id) is None


def test_who_has_lost_a_job_shows_nothing_of_it(queue: Queue, previews: Previews) -> None:
    lost = take(queue)
    queue.records.release(lost.job_id, lost.fence, counted=False)
    previews.write({lost: b"given back"}, 1)
    assert previews.read(lost.job_id) is None
    [newer] = claim(queue, "two")
    previews.write({lost: b"somebody else's"}, 2)
    previews.write({newer: JPEG}, 1)
    assert previews.read(lost.job_id) == Preview(JPEG, 1)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"step": 1}', json.dumps({"step": 1, "jpeg": "no base64!"})])
def test_what_cannot_be_read_is_no_preview(text: str | None) -> None:
    assert parse_preview(text) is None
