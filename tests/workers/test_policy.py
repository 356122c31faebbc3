"""What a worker does with a content policy: before it generates, and before anything of a video is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import OnProgress, PreparedRequest, Progress, Snapshots, Video
from polyreel.errors import StorageAway
from polyreel.job import JobStatus
from polyreel.policy import ALLOWED, Judge, Verdict, refuse
from polyreel.queue import Queue
from polyreel.request import VideoRequest
from polyreel.storage.local import LocalStorage
from tests.core.jobs import queued
from tests.families.quick import Quick
from tests.workers.claims import read, run, runner_for, submit_and_run, take
from workers.residency import Residency
from workers.runner import JobRunner


class Policy:
    """Answers what it is told to; `shown` are the shapes of the frames that it saw."""

    def __init__(self, request: Verdict = ALLOWED, video: Verdict | None = ALLOWED, **attributes: object) -> None:
        self.request, self.video = request, video
        self.shown: list[tuple[int, ...]] = []
        vars(self).update(attributes)

    def check_request(self, request: VideoRequest, owner: str) -> Verdict:
        return self.request

    def check_frames(self, frames: np.ndarray, request: VideoRequest, owner: str) -> Verdict:
        self.shown.append(frames.shape)
        return self.video  # type: ignore[return-value]


@pytest.fixture
def judged(
    queue: Queue, stored: LocalStorage, make_residency: Callable[..., Residency], tmp_path: Path
) -> Callable[..., tuple[JobRunner, Quick]]:
    """Return a factory of runners with a policy, and their family."""

    def make(policy: Policy | None, family: Quick | None = None, **options: object) -> tuple[JobRunner, Quick]:
        family = family or Quick()
        judge = Judge("strict", policy) if policy else None
        residency = make_residency(**{"ltx-tiny": family})
        return runner_for(queue, residency, stored, tmp_path / "scratch", judge=judge, **options), family

    return make


class Saving(Quick):
    """Saves a snapshot on the way, and shows a picture of each step."""

    def generate(
        self,
        model: Any,
        requests: Sequence[PreparedRequest],
        on_progress: OnProgress,
        snapshots: Snapshots | None = None,
    ) -> list[Video]:
        assert snapshots
        snapshots.save(b"latents", 1)
        picture = np.zeros((8, 8, 3), np.uint8)
        on_progress(Progress("denoising", 1, 4, 0.1, lambda: {0: picture}))
        return super().generate(model, requests, on_progress)


def files(stored: LocalStorage) -> list[str]:
    return [path.name for path in stored.folder.rglob("*") if path.is_file()]


def test_a_video_that_is_allowed_says_in_its_receipt_who_has_seen_it(
    judged: Callable[..., tuple[JobRunner, Quick]], stored: LocalStorage
) -> None:
    policy = Policy()
    [job] = submit_and_run(judged(policy)[0])
    assert (job.status, job.receipt["content_policy"]) == (JobStatus.SUCCEEDED, "strict")
    assert policy.shown == [(9, 64, 96, 3)]
    assert job.timings["policy"] >= 0


def test_the_file_is_the_same_with_a_policy_and_without(
    judged: Callable[..., tuple[JobRunner, Quick]],
) -> None:
    [with_one] = submit_and_run(judged(Policy())[0])
    [without] = submit_and_run(judged(None)[0])
    assert with_one.outputs[0].sha256 == without.outputs[0].sha256
    assert "content_policy" not in without.receipt
    assert "policy" not in without.timings


def test_a_refused_request_is_not_generated(
    judged: Callable[..., tuple[JobRunner, Quick]], stored: LocalStorage
) -> None:
    runner, family = judged(Policy(request=refuse("Not here.")))
    [job] = submit_and_run(runner)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "content_refused")
    assert job.error_message == "The request was refused by this server's content policy: Not here."
    assert (family.steps_done, files(stored)) == (0, [])


@pytest.mark.parametrize(
    ("video", "code"), [(refuse("Not here."), "content_refused"), (None, "content_policy_failed")], ids=["no", "broken"]
)
def test_of_a_video_that_is_not_allowed_nothing_is_kept(
    judged: Callable[..., tuple[JobRunner, Quick]],
    queue: Queue,
    stored: LocalStorage,
    video: Verdict | None,
    code: str,
) -> None:
    runner, family = judged(Policy(video=video), Saving(), previews=True)
    [job] = submit_and_run(runner, queued(saved=True))
    assert (job.status, job.error_code, job.outputs, job.receipt) == (JobStatus.FAILED, code, (), {})
    assert family.steps_done == 4
    assert files(stored) == []
    assert queue.records.client.keys("polyreel:preview:*") == []


def test_of_jobs_that_share_a_call_only_the_refused_one_fails(
    judged: Callable[..., tuple[JobRunner, Quick]], queue: Queue
) -> None:
    class NotOfBob(Policy):
        def check_request(self, request: VideoRequest, owner: str) -> Verdict:
            return refuse("Not here.") if owner == "bob" else ALLOWED

    runner, family = judged(NotOfBob())
    jobs = [queue.submit(queued(owner=owner)).job for owner in ("alice", "bob", "carol")]
    assert len(run(runner, most=3)) == 3
    assert [read(queue, job).status.value for job in jobs] == ["succeeded", "failed", "succeeded"]
    assert len(family.requests) == 2


def test_a_job_that_was_taken_in_with_another_policy_is_not_generated(
    judged: Callable[..., tuple[JobRunner, Quick]],
) -> None:
    runner, family = judged(None)
    [job] = submit_and_run(runner, queued(content_policy="strict"))
    assert (job.error_code, family.steps_done) == ("content_policy_failed", 0)


@pytest.mark.parametrize(
    ("before", "after"), [(False, ["content_refused", 4, 1]), (True, ["", 0, 0])], ids=["no", "yes"]
)
def test_files_that_wait_in_the_spool_are_stored_only_if_the_policy_has_seen_them(
    judged: Callable[..., tuple[JobRunner, Quick]],
    queue: Queue,
    stored: LocalStorage,
    monkeypatch: pytest.MonkeyPatch,
    before: bool,
    after: list[object],
) -> None:
    """They may have been made before there was one."""

    def away(storage: LocalStorage, source: Path, key: str) -> None:
        raise StorageAway("The storage does not answer.")

    job = queue.submit(queued()).job
    with monkeypatch.context() as outage:
        outage.setattr(LocalStorage, "put", away)
        first, _ = judged(Policy() if before else None)
        first.run(take(first))
        first._finisher.wait()
        first._finisher.give_up()  # it is dead
    queue.leases.expire_worker("one")
    policy = Policy(video=refuse("Not here."))
    second, family = judged(policy)
    run(second)
    assert [read(queue, job).error_code, family.steps_done, len(policy.shown)] == after
    assert len(files(stored)) == (1 if before else 0)


@pytest.mark.parametrize(("shows", "seen"), [(None, False), (False, False), (True, True)])
def test_no_picture_is_shown_of_what_no_policy_has_seen(
    judged: Callable[..., tuple[JobRunner, Quick]], shows: bool | None, seen: bool
) -> None:
    policy = Policy() if shows is None else Policy(shows_previews=shows)
    assert judged(policy, previews=True)[0]._previews is seen
    assert judged(None, previews=True)[0]._previews is True
