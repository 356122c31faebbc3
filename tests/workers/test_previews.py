"""Previews by a worker: its own jobs', twice a second at most, and never at the expense of a job."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rq.timeouts import JobTimeoutException

import workers.reports
from models import Pictures, Progress
from polyreel.errors import QueueUnavailable
from polyreel.job import JobStatus
from polyreel.leases import Claim, Wishes
from polyreel.previews import Preview, parse_preview, preview_key
from polyreel.queue import Queue
from polyreel.storage.local import LocalStorage
from tests.core.jobs import REQUEST, queued
from tests.families.quick import Quick
from tests.workers.claims import run, runner_for, unkept
from workers.prepare import Preparer
from workers.preview_files import jpeg
from workers.reports import Reports
from workers.residency import Residency
from workers.whole_progress import WholeProgress

RED, BLUE = ((np.zeros((8, 16, 3)) + colour).astype(np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(workers.reports, "time", clock)
    return clock


class Shown:
    """What a job's owner can see of it."""

    def __init__(self, queue: Queue) -> None:
        self._client = queue.records.client

    def read(self, job_id: str) -> Preview | None:
        return parse_preview(self._client.get(preview_key(job_id)))


@pytest.fixture
def previews(queue: Queue) -> Shown:
    return Shown(queue)


@pytest.fixture
def two(queue: Queue) -> list[Claim]:
    """Two jobs of one call."""
    for _ in range(2):
        queue.submit(queued())
    return queue.leases.claim("one", Wishes(["ltx-tiny"], batches={"ltx-tiny": [(10**12, 2)]}))


@pytest.fixture
def reports(queue: Queue, two: list[Claim], clock: Clock) -> Reports:
    return Reports(queue.records, unkept(), "one", two, shows=True)


def at(step: int, pictures: Pictures) -> Progress:
    return Progress("denoising", step, 4, step / 4, pictures)


def colour_of(preview: Preview | None) -> str:
    assert preview is not None
    red, green, blue = Image.open(io.BytesIO(preview.jpeg)).getpixel((8, 4))
    return {(True, False, False): "red", (False, False, True): "blue"}[red > 200, green > 200, blue > 200]


def test_each_job_of_a_call_shows_its_own_picture(reports: Reports, two: list[Claim], previews: Shown) -> None:
    reports.step(at(1, lambda: {0: RED, 1: BLUE}))
    shown = [previews.read(claim.job_id) for claim in two]
    assert [colour_of(one) for one in shown] == ["red", "blue"]
    assert [one and one.step for one in shown] == [1, 1]


def test_pictures_are_computed_twice_a_second_at_most(
    reports: Reports, two: list[Claim], previews: Shown, clock: Clock
) -> None:
    computed = []
    for step in range(1, 12):
        reports.step(at(step, lambda step=step: computed.append(step) or {0: RED}))
        clock.now += 0.1
    assert computed == [1, 6, 11]
    assert previews.read(two[0].job_id) == Preview(jpeg(RED), 11)


def test_nothing_is_computed_where_previews_are_off(queue: Queue, two: list[Claim], clock: Clock) -> None:
    computed = []
    Reports(queue.records, unkept(), "one", two).step(at(1, lambda: computed.append(1) or {}))
    assert computed == []


def test_a_cancelled_job_of_a_call_is_not_shown(
    queue: Queue, reports: Reports, two: list[Claim], previews: Shown
) -> None:
    queue.cancel(two[0].job_id)
    reports.step(at(1, lambda: {0: RED, 1: BLUE}))
    assert previews.read(two[0].job_id) is None
    assert colour_of(previews.read(two[1].job_id)) == "blue"


def test_a_picture_that_fails_is_not_tried_again_and_the_job_goes_on(reports: Reports, clock: Clock) -> None:
    tried = []

    def fail() -> dict[int, np.ndarray]:
        tried.append(1)
        raise ValueError("no such layout")

    for step in (1, 2):
        reports.step(at(step, fail))
        clock.now += 1
    assert tried == [1]


@pytest.mark.parametrize(
    "trouble", [JobTimeoutException("late"), RuntimeError("CUDA error: an illegal memory access was encountered")]
)
def test_what_is_the_jobs_own_trouble_goes_up(reports: Reports, trouble: Exception) -> None:
    def fail() -> dict[int, np.ndarray]:
        raise trouble

    with pytest.raises(type(trouble)):
        reports.step(at(1, fail))


def test_nothing_more_is_computed_while_redis_does_not_answer(
    queue: Queue, reports: Reports, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise QueueUnavailable("away")

    computed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(queue.records, "advance_all", away)
        for step in (1, 2):  # what waited in vain is not tried again for 10 s
            reports.step(at(step, lambda: computed.append(1) or {0: RED}))
            clock.now += 5
    assert computed == [1]
    clock.now += 1
    reports.step(at(3, lambda: computed.append(3) or {0: RED}))
    assert computed == [1, 3]


class Showing(Quick):
    """Shows a picture of every request, the first red and the others blue."""

    def generate(self, model: Any, requests: Any, on_progress: Any) -> Any:
        pictures = {n: BLUE if n else RED for n in range(len(requests))}
        return super().generate(
            model, requests, lambda progress: on_progress(replace(progress, pictures=pictures.copy))
        )


def test_a_job_is_shown_while_it_is_denoised_and_no_longer(
    queue: Queue, make_residency: Callable[..., Residency], stored: LocalStorage, tmp_path: Path, previews: Shown
) -> None:
    seen = []
    job = queue.submit(queued()).job
    family = Showing(after_step=lambda step: seen.append(previews.read(job.id)))
    runner = runner_for(queue, make_residency(**{"ltx-tiny": family}), stored, tmp_path / "scratch", previews=True)
    run(runner)
    assert [colour_of(one) for one in seen] == ["red"] * 4
    assert seen[0] == Preview(jpeg(RED), 1)
    ended = queue.records.get(job.id)
    assert ended is not None
    assert (ended.job.status, previews.read(job.id)) == (JobStatus.SUCCEEDED, None)


def test_pictures_follow_their_jobs_when_one_of_a_call_cannot_be_prepared(
    queue: Queue, make_residency: Callable[..., Residency], stored: LocalStorage, tmp_path: Path, previews: Shown,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    jobs = [queue.submit(queued(replace(REQUEST, seed=seed))).job for seed in (1, 2)]
    seen: list[dict[str, bool]] = []
    family = Showing(after_step=lambda step: seen.append({job.id: bool(previews.read(job.id)) for job in jobs}))
    runner = runner_for(queue, make_residency(**{"ltx-tiny": family}), stored, tmp_path / "scratch", previews=True)
    prepare = Preparer.prepare

    def one_is_missing(preparer: Preparer, request: Any) -> Any:
        if request.seed == 1:
            raise ValueError("its picture is gone")
        return prepare(preparer, request)

    monkeypatch.setattr(Preparer, "prepare", one_is_missing)
    run(runner, most=2)
    assert seen[0] == {jobs[0].id: False, jobs[1].id: True}


def test_pictures_of_several_calls_are_told_apart() -> None:
    told: list[dict[int, np.ndarray]] = []
    whole = WholeProgress(lambda: None, lambda progress: told.append(progress.pictures()), 3)
    whole.of(2)(at(1, lambda: {0: RED, 1: BLUE}))
    whole.done(2)
    whole.of(1)(at(1, lambda: {0: RED}))
    assert [{n: picture is RED for n, picture in one.items()} for one in told] == [{0: True, 1: False}, {2: True}]


@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_a_preview_is_a_small_jpeg_of_the_same_size(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (160, 160, 3), np.uint8)
    picture = noise if kind == "noise" else np.broadcast_to(np.arange(160, dtype=np.uint8)[:, None, None], noise.shape)
    file = jpeg(picture)
    image = Image.open(io.BytesIO(file))
    assert (image.format, image.size, image.mode) == ("JPEG", (160, 160), "RGB")
    assert len(file) <= 10_000
