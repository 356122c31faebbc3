"""A video whose files were made is not made again: while the storage is away, when its worker stops or dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import workers.uploads
from polyreel.errors import StorageAway, StorageFailed, StorageFull
from polyreel.job import JobStatus, VideoJob
from polyreel.leases import Wishes
from polyreel.queue import Queue
from polyreel.request import ImageCondition, OutputSpec
from polyreel.storage.memory import MemoryStorage
from tests.core.jobs import REQUEST, assert_all_adds_up, queued
from tests.families.quick import Quick
from tests.workers.claims import read, run, runner_for, take
from workers.keeper import OVERTIME_S
from workers.residency import Residency
from workers.runner import JobRunner
from workers.sweeper import Sweeper

MakeRunner = Callable[..., JobRunner]


class Shaky(MemoryStorage):
    """Refuses everything with `trouble` while there is one."""

    trouble: StorageFailed | None
    tries: list[str]

    def put(self, source: Path, key: str) -> None:
        self.tries.append(key)
        self.check()
        super().put(source, key)

    def open(self, key: str):  # type: ignore[no-untyped-def]
        self.check()
        return super().open(key)

    def check(self) -> None:
        if self.trouble:
            raise self.trouble


@pytest.fixture
def shaky() -> Shaky:
    storage = Shaky()
    object.__setattr__(storage, "tries", [])
    mend(storage, StorageAway("storage: the S3 service does not answer; check s3.endpoint."))
    return storage


def mend(storage: Shaky, trouble: StorageFailed | None = None) -> None:
    object.__setattr__(storage, "trouble", trouble)


@pytest.fixture(autouse=True)
def _quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.uploads, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(workers.uploads, "_LONGEST_PAUSE_S", 0.05)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "not within a minute"
        time.sleep(0.005)


def spooled(tmp_path: Path) -> list[str]:
    folder = tmp_path / "spool"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def left_waiting(make_runner: MakeRunner, queue: Queue, storage: Shaky, job: VideoJob | None = None) -> VideoJob:
    """Return a job that a worker "one" has made and could not store."""
    job = queue.submit(job or queued()).job
    runner = make_runner(Quick(), storage=storage)
    runner.run(take(runner))
    until(lambda: len(storage.tries) > 1)
    runner._finisher.give_up()  # it writes nothing from here on: it is dead
    return job


def test_a_job_waits_for_the_storage_leased_while_its_worker_goes_on(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky, tmp_path: Path
) -> None:
    jobs = [queue.submit(queued()).job for _ in range(3)]
    family = Quick()
    runner = make_runner(family, storage=shaky)
    for _ in jobs:
        runner.run(take(runner))
    runner._finisher.wait()
    until(lambda: len(shaky.tries) > 3)
    assert {read(queue, job).status for job in jobs} == {JobStatus.UPLOADING}
    assert sorted(runner.jobs()) == sorted(job.id for job in jobs)
    assert queue.leases.expire_worker("nobody") == {}
    assert set(shaky.tries) == {f"out/{jobs[0].id}/1/{jobs[0].id}.gif"}, "the others would only cost time"
    assert spooled(tmp_path) == sorted(f"{job.id}.1" for job in jobs)
    mend(shaky)
    runner.finish(60)
    assert [read(queue, job).status for job in jobs] == [JobStatus.SUCCEEDED] * 3
    assert sorted(shaky.files) == sorted(f"out/{job.id}/1/{job.id}.gif" for job in jobs)
    assert family.steps_done == 12, "each was generated once"
    assert (runner.jobs(), spooled(tmp_path)) == ([], [])
    assert_all_adds_up(queue.records.client)


def test_files_that_wait_have_no_limit_but_the_spools(make_runner: MakeRunner, queue: Queue, shaky: Shaky) -> None:
    queue.submit(queued())
    runner = make_runner(Quick(), storage=shaky)
    runner.run(take(runner))
    until(lambda: len(shaky.tries) > 1)
    seen: list[dict[object, float]] = []
    until(lambda: seen.append(dict(runner.keeping._deadlines)) or {} in seen)
    assert all(until - time.monotonic() <= 600 + OVERTIME_S for found in seen for until in found.values())
    mend(shaky)
    runner.finish(60)


def test_a_storage_that_stays_away_fails_the_job_in_the_end(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky, tmp_path: Path
) -> None:
    job = queue.submit(queued()).job
    runner = make_runner(Quick(), storage=shaky, spool_s=0.3)
    runner.run(take(runner))
    runner.finish(60)
    failed = read(queue, job)
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "storage_away")
    assert failed.error_message == (
        "The video was made and could not be stored: the storage of the results did not answer in time."
    )
    assert len(shaky.tries) > 2
    assert (runner.jobs(), spooled(tmp_path), shaky.files) == ([], [], {})
    runner._finisher.give_up()


def test_a_worker_that_dies_leaves_its_files_to_the_next_one(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky, tmp_path: Path
) -> None:
    two_files = replace(REQUEST, outputs=(OutputSpec("gif", 8.0), OutputSpec("zip", 8.0)))
    job = left_waiting(make_runner, queue, shaky, queued(two_files))
    assert queue.leases.expire_worker("one") == {job.id: "queued"}
    mend(shaky)
    family = Quick()
    run(make_runner(family, worker="two", storage=shaky))
    done = read(queue, job)
    assert (done.status, done.worker, done.attempts) == (JobStatus.SUCCEEDED, "two", 2)
    assert family.requests == [], "nothing was generated again"
    assert sorted(shaky.files) == [f"out/{job.id}/2/{job.id}.gif", f"out/{job.id}/2/{job.id}.zip"]
    assert [output.key for output in done.outputs] == sorted(shaky.files)
    assert [len(shaky.files[output.key][1]) for output in done.outputs] == [output.bytes for output in done.outputs]
    assert done.receipt["seed"] == 42
    assert {"load", "generate", "encode", "store"} <= set(done.timings)
    assert spooled(tmp_path) == []
    assert_all_adds_up(queue.records.client)


def test_a_worker_that_stops_during_an_outage_gives_its_jobs_back_and_loses_nothing(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky, tmp_path: Path
) -> None:
    jobs = [queue.submit(queued()).job for _ in range(2)]
    runner = make_runner(Quick(), storage=shaky)
    for _ in jobs:
        runner.run(take(runner))
    runner.finish(0.05)  # a drain waits for a while
    runner.hand_back()
    assert runner.jobs() == []
    assert spooled(tmp_path) == sorted(f"{job.id}.1" for job in jobs)
    mend(shaky)
    family = Quick()
    second = make_runner(family, worker="two", storage=shaky)
    while run(second):
        pass
    ended = [read(queue, job) for job in jobs]
    assert [(job.status, job.attempts) for job in ended] == [(JobStatus.SUCCEEDED, 1)] * 2
    assert family.requests == []
    assert spooled(tmp_path) == []


def damage(folder: Path) -> None:
    (folder / "0.gif").write_bytes(b"half a f")


def cut_off(folder: Path) -> None:
    (folder / "about.json").write_text('{"names": [')


def unfinished(folder: Path) -> None:
    (folder / "about.json").unlink()


@pytest.mark.parametrize("harm", [damage, cut_off, unfinished])
def test_what_is_not_whole_in_the_spool_is_made_again(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    job = left_waiting(make_runner, queue, shaky)
    queue.leases.expire_worker("one")
    harm(tmp_path / "spool" / f"{job.id}.1")
    mend(shaky)
    family = Quick()
    run(make_runner(family, worker="two", storage=shaky))
    assert (read(queue, job).status, len(family.requests)) == (JobStatus.SUCCEEDED, 1)


def test_a_worker_that_was_taken_for_dead_stores_nothing_that_another_has_taken_over(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky, tmp_path: Path
) -> None:
    job = queue.submit(queued()).job
    zombie = make_runner(Quick(), storage=shaky)
    zombie.run(take(zombie))
    until(lambda: len(shaky.tries) > 1)
    queue.leases.expire_worker("one")
    family = Quick()
    two = make_runner(family, worker="two", storage=shaky)
    two.run(take(two))
    two._finisher.wait()
    mend(shaky)
    zombie.finish(60)
    two.finish(60)
    done = read(queue, job)
    assert (done.status, done.worker, family.requests) == (JobStatus.SUCCEEDED, "two", [])
    assert list(shaky.files) == [f"out/{job.id}/2/{job.id}.gif"]
    assert zombie.jobs() == two.jobs() == []


def test_a_storage_that_takes_one_file_and_no_second_is_still_away() -> None:
    tries: list[str] = []

    def store(name: str) -> None:
        tries.append(name)
        if name == "second":
            raise StorageAway("away again")

    uploads: workers.uploads.Uploads[str] = workers.uploads.Uploads(store, lambda *_: None, lambda: None, 60.0)
    with uploads._changed:  # both wait before the first is tried
        for name in ("first", "second"):
            uploads.add(name, StorageAway("away"))
    until(lambda: len(tries) > 3)
    assert (tries[0], uploads.is_away, uploads.why.message) == ("first", True, "away again")
    uploads.give_up()


def test_no_video_is_begun_once_the_storage_has_been_away_for_a_while_until_it_is_back(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.uploads, "MOST_WAITING", 2)
    jobs = [queue.submit(queued()).job for _ in range(3)]
    family = Quick()
    runner = make_runner(family, storage=shaky, spool_s=0.5)
    for _ in range(2):
        runner.run(take(runner))
    runner._finisher.wait()
    assert not runner._finisher.takes_more
    runner.finish(60)  # both fail; the storage is away as before
    assert [read(queue, job).status for job in jobs] == [JobStatus.FAILED, JobStatus.FAILED, JobStatus.QUEUED]
    monkeypatch.setattr(workers.uploads, "PATIENCE_S", 0.0)
    assert not runner._finisher.takes_more
    mend(shaky)
    until(lambda: runner._finisher.takes_more)  # nothing waits: it asks by itself
    run(runner)
    assert read(queue, jobs[2]).status is JobStatus.SUCCEEDED


def test_a_full_storage_fails_the_job_by_its_own_name_and_no_video_is_begun_until_there_is_space(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky, tmp_path: Path
) -> None:
    mend(shaky, StorageFull("The result could not be stored: No space left on device."))
    job = queue.submit(queued()).job
    runner = make_runner(Quick(), storage=shaky)
    run(runner)
    failed = read(queue, job)
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "storage_full")
    assert failed.error_message == "The result could not be stored: No space left on device."
    assert (spooled(tmp_path), shaky.files) == ([], {})
    assert not runner._finisher.takes_more
    mend(shaky)
    until(lambda: runner._finisher.takes_more)


class Small(MemoryStorage):
    """Says how much space it has."""

    free: int

    def free_bytes(self) -> int | None:
        return self.free


def test_without_space_a_worker_takes_no_job_and_the_job_waits(
    make_runner: MakeRunner, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.room._BELIEVED_S", 0.0)
    storage = Small()
    object.__setattr__(storage, "free", 999)
    job = queue.submit(queued()).job
    runner = make_runner(Quick(), storage=storage, least_free_bytes=1000)
    runner.keeping._quiet = 0
    wishes = Wishes(["ltx-tiny"])
    assert runner.claim(wishes) == []
    assert read(queue, job).status is JobStatus.QUEUED
    object.__setattr__(storage, "free", 1000)
    assert [claim.job_id for claim in runner.claim(wishes)] == [job.id]


def test_a_job_whose_picture_cannot_be_read_now_is_given_back_however_many_workers_try(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky
) -> None:
    request = replace(REQUEST, images=(ImageCondition(f"in/{'0a' * 32}"),))
    job = queue.submit(queued(request)).job
    for _ in range(4):
        runner = make_runner(Quick(), storage=shaky)
        runner.run(take(runner))
        back = queue.records.get(job.id)
        assert back is not None
        assert (back.claimable, back.job.status.is_terminal, back.job.attempts) == (True, False, 0)
        assert not runner._finisher.takes_more
        runner._finisher.give_up()


class OnePictureAway(MemoryStorage):
    """Works, but for its pictures."""

    def open(self, key: str):  # type: ignore[no-untyped-def]
        raise StorageAway("The result could not be read: Input/output error.")


def test_a_picture_that_a_storage_which_works_never_gives_fails_its_job_in_the_end(
    make_runner: MakeRunner, queue: Queue
) -> None:
    request = replace(REQUEST, images=(ImageCondition(f"in/{'0a' * 32}"),))
    job = queue.submit(queued(request)).job
    runner = make_runner(Quick(), storage=OnePictureAway())
    for _ in range(3):
        runner.run(take(runner))
    assert (read(queue, job).status, read(queue, job).attempts) == (JobStatus.FAILED, 3)
    runner._finisher.give_up()


def test_what_ended_jobs_left_in_the_spool_is_swept_and_nothing_else(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky, tmp_path: Path
) -> None:
    kept, ended = left_waiting(make_runner, queue, shaky), left_waiting(make_runner, queue, shaky)
    queue.leases.expire_worker("one")
    assert queue.cancel(ended.id) == "cancelled"
    (tmp_path / "spool" / "7b1e0000-0000-4000-8000-000000000000.3").mkdir()
    (tmp_path / "spool" / "somebody's.jpg").mkdir()
    Sweeper(shaky, 60, tmp_path / "scratch", queue.records.client).sweep(time.time())
    assert spooled(tmp_path) == sorted([f"{kept.id}.1", "somebody's.jpg"])


def test_workers_of_other_machines_leave_a_job_to_the_one_that_has_its_files_for_a_while(
    make_runner: MakeRunner, make_residency: Callable[..., Residency], queue: Queue, shaky: Shaky, tmp_path: Path
) -> None:
    job = left_waiting(make_runner, queue, shaky)
    queue.leases.expire_worker("one")
    mend(shaky)
    far = Quick()
    elsewhere = runner_for(queue, make_residency(**{"ltx-tiny": far}), shaky, tmp_path / "elsewhere" / "scratch", "far")
    assert take(elsewhere) == []
    near = make_runner(Quick(), worker="near", storage=shaky)
    assert near._spool.machine != elsewhere._spool.machine
    [claim] = take(near)
    assert claim.job_id == job.id
    queue.records.release(claim.job_id, claim.fence, counted=False)
    near.keeping.let_go(claim)
    assert take(elsewhere) == []
    queue.records.client.hset(f"polyreel:job:{job.id}", "spooled_until", "1.0")
    run(elsewhere)
    done = read(queue, job)
    assert (done.status, done.worker, len(far.requests)) == (JobStatus.SUCCEEDED, "far", 1)


def test_waiting_for_the_storage_costs_a_key_no_gpu_seconds(
    make_runner: MakeRunner, queue: Queue, shaky: Shaky
) -> None:
    job = queue.submit(queued(account="key:a")).job
    runner = make_runner(Quick(), storage=shaky)
    runner.run(take(runner))
    until(lambda: len(shaky.tries) > 1)
    charged = queue.records.usage("key:a").gpu_seconds
    time.sleep(0.2)  # of waiting
    mend(shaky)
    runner.finish(60)
    assert read(queue, job).status is JobStatus.SUCCEEDED
    assert 0 < charged == queue.records.usage("key:a").gpu_seconds
