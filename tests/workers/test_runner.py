"""One job from its claim to its end, with families of one behaviour each."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from rq.timeouts import JobTimeoutException

from polyreel.errors import AdapterUnavailable, GenerationFailed, StorageFailed
from polyreel.job import JobStatus, VideoJob
from polyreel.logs import configure_logs
from polyreel.queue import Queue
from polyreel.records import parse_rates
from polyreel.request import OutputSpec
from polyreel.storage.local import LocalStorage
from polyreel.storage.memory import MemoryStorage
from tests.core.jobs import REQUEST, queued
from tests.families.quick import Quick
from tests.families.raising import Raising
from tests.families.unloadable import Unloadable
from workers.runner import JobRunner

MakeRunner = Callable[..., JobRunner]


def read(queue: Queue, job: VideoJob) -> VideoJob:
    stored = queue.records.get(job.id)
    assert stored is not None
    return stored.job


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_job_ends_with_its_file_stored_and_described(
    make_runner: MakeRunner, queue: Queue, stored: LocalStorage
) -> None:
    job = queue.submit(queued()).job
    make_runner(Quick()).run(job.id)
    ended = read(queue, job)
    assert (ended.status, ended.progress, ended.step, ended.total_steps) == (JobStatus.SUCCEEDED, 100, 4, 4)
    assert (ended.worker, ended.attempts, ended.error_code, ended.error_message) == ("one", 1, "", "")
    assert sorted(ended.timings) == [
        "decoding", "denoising", "encode", "generate", "load", "store", "text_encoding"
    ]  # fmt: skip
    assert 0 < ended.seconds_taken < 60
    (output,) = ended.outputs
    content = stored.path(job.output_keys[0]).read_bytes()
    assert content.startswith(b"GIF89a")
    assert output.sha256 == hashlib.sha256(content).hexdigest()
    assert output.bytes == len(content)
    assert (output.key, output.format, output.media_type) == (job.output_keys[0], "gif", "image/gif")
    assert (output.height, output.width, output.num_frames, output.fps) == (64, 96, 9, 8.0)
    assert queue.records.open_ids() == []


def test_two_files_are_made_of_the_same_frames(make_runner: MakeRunner, queue: Queue, stored: LocalStorage) -> None:
    request = replace(REQUEST, outputs=(OutputSpec("gif", 8.0), OutputSpec("zip", 8.0)))
    job = queue.submit(queued(request)).job
    make_runner(Quick()).run(job.id)
    assert [output.key for output in read(queue, job).outputs] == list(job.output_keys)
    assert files_in(stored.folder) == [f"{job.id}.gif", f"{job.id}.zip"]


def test_progress_rises_with_every_step(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    seen = []

    def look(step: int) -> None:
        now = read(queue, job)
        seen.append((now.status.value, now.stage, now.step, now.progress))

    make_runner(Quick(after_step=look)).run(job.id)
    assert seen == [
        ("running", "denoising", 1, 23),
        ("running", "denoising", 2, 41),
        ("running", "denoising", 3, 59),
        ("running", "denoising", 4, 77),
    ]


def test_a_cancelled_job_frees_the_worker_within_one_step_and_leaves_no_file(
    make_runner: MakeRunner, queue: Queue, stored: LocalStorage
) -> None:
    job, next_job = queue.submit(queued()).job, queue.submit(queued()).job

    def cancel(step: int) -> None:
        if step == 2:
            queue.records.advance(job.id, None, JobStatus.CANCELLED)

    family = Quick(after_step=cancel)
    runner = make_runner(family)
    runner.run(job.id)
    assert family.steps_done == 3
    assert (read(queue, job).status, read(queue, job).outputs) == (JobStatus.CANCELLED, ())
    assert files_in(stored.folder) == []
    runner.run(next_job.id)
    assert read(queue, next_job).status is JobStatus.SUCCEEDED


class ActsAfterStoring(MemoryStorage):
    """Does something once a file is stored and before the record says so."""

    act: Callable[[], object]

    def put(self, source: Path, key: str) -> None:
        super().put(source, key)
        self.act()


def test_a_job_that_was_cancelled_while_its_file_was_stored_leaves_no_file(
    make_runner: MakeRunner, queue: Queue
) -> None:
    job = queue.submit(queued()).job
    storage = ActsAfterStoring()
    object.__setattr__(storage, "act", lambda: queue.records.advance(job.id, None, JobStatus.CANCELLED))
    make_runner(Quick(), storage=storage).run(job.id)
    assert read(queue, job).status is JobStatus.CANCELLED
    assert storage.files == {}


def test_a_worker_that_lost_its_job_leaves_the_next_ones_file(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    storage = ActsAfterStoring()

    def give_to_another() -> None:
        queue.records.release(job.id, 1, counted=True)
        queue.records.claim(job.id, "two", time.time())

    object.__setattr__(storage, "act", give_to_another)
    make_runner(Quick(), storage=storage).run(job.id)
    assert list(storage.files) == [job.output_keys[0]]
    assert (read(queue, job).worker, read(queue, job).status) == ("two", JobStatus.UPLOADING)


def test_a_family_that_fails_says_why_to_the_client(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    make_runner(Raising(GenerationFailed("The pipeline returned NaN; try another seed."))).run(job.id)
    failed = read(queue, job)
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "generation_failed")
    assert failed.error_message == "The pipeline returned NaN; try another seed."
    assert failed.ended_at > failed.started_at > 0
    assert failed.progress < 100


def test_a_model_that_does_not_load_fails_the_job_and_tells_the_reason_to_the_operator_alone(
    make_runner: MakeRunner, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs("info", "worker")
    job = queue.submit(queued()).job
    make_runner(Unloadable()).run(job.id)
    failed = read(queue, job)
    assert (failed.error_code, failed.error_message) == (
        "checkpoint_unavailable",
        "The model ltx-tiny cannot run on this server; the operator finds the reason in the log.",
    )
    assert "The checkpoint has no model_index.json." in capsys.readouterr().err


def test_a_lora_that_cannot_be_used_is_named_to_the_client(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    make_runner(Raising(AdapterUnavailable("The LoRA watercolour was made for another model."))).run(job.id)
    failed = read(queue, job)
    assert (failed.error_code, failed.error_message) == (
        "adapter_unavailable",
        "The LoRA watercolour was made for another model.",
    )


def test_an_encoder_that_fails_tells_no_path_to_the_client(
    make_runner: MakeRunner, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    job = queue.submit(queued()).job
    make_runner(Quick()).run(job.id)
    failed = read(queue, job)
    assert (failed.error_code, failed.error_message) == (
        "encoding_failed",
        "The frames could not be encoded as a file; the operator finds the reason in the worker's log.",
    )


def test_an_unknown_exception_keeps_its_text_to_itself(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    make_runner(Raising(RuntimeError("secret path /srv/weights"))).run(job.id)
    failed = read(queue, job)
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "internal_error")
    assert failed.error_message == (f"The job failed inside the server; the operator finds job {job.id} in the log.")
    assert "secret" not in "".join(queue.records.client.hgetall(f"polyreel:job:{job.id}").values())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_job_that_took_too_long_says_so(make_runner: MakeRunner, queue: Queue, wrapped: bool) -> None:
    job = queue.submit(queued()).job
    make_runner(Raising(JobTimeoutException("60 s"), wrapped=wrapped)).run(job.id)
    failed = read(queue, job)
    assert failed.error_code == "timeout"
    assert failed.error_message == "The job ran longer than this server allows (job_timeout_s)."


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt])
def test_a_stop_hands_the_job_back_uncounted_and_goes_on_up(
    make_runner: MakeRunner, queue: Queue, stop: type[BaseException]
) -> None:
    job = queue.submit(queued()).job
    runner = make_runner(Raising(stop()))
    with pytest.raises(stop):
        runner.run(job.id)
    handed_back = queue.records.get(job.id)
    assert handed_back is not None
    assert (handed_back.claimable, handed_back.job.attempts, handed_back.job.worker) == (True, 0, "")
    assert not handed_back.job.status.is_terminal
    assert runner.current == ""


def test_a_job_that_another_worker_has_is_not_run(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    assert queue.records.claim(job.id, "two", time.time())
    family = Quick()
    make_runner(family).run(job.id)
    assert (family.steps_done, family.loads) == (0, [])
    assert read(queue, job).worker == "two"


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_a_job_that_ended_is_not_run_again(make_runner: MakeRunner, queue: Queue, end: str) -> None:
    job = queue.submit(queued()).job
    queue.records.advance(job.id, None, JobStatus(end))
    family = Quick()
    runner = make_runner(family)
    runner.run(job.id)
    assert family.steps_done == 0
    assert (read(queue, job).status.value, read(queue, job).attempts, runner.current) == (end, 0, "")


def test_an_id_without_a_record_is_nothing(make_runner: MakeRunner, queue: Queue) -> None:
    make_runner(Quick()).run("7b1e0000-0000-4000-8000-000000000000")
    assert queue.records.client.keys("polyreel:*") == []


def test_a_record_that_cannot_be_read_is_left_for_who_can(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    queue.records.client.hset(f"polyreel:job:{job.id}", "request", '{"from": "another version"}')
    runner = make_runner(Quick())
    with pytest.raises(KeyError):
        runner.run(job.id)
    assert queue.records.client.hget(f"polyreel:job:{job.id}", "claimable") == "1"
    assert runner.current == ""


class FullDisk(LocalStorage):
    """Has room for `room` files."""

    room = 0

    def put(self, source: Path, key: str) -> None:
        if FullDisk.room == 0:
            raise StorageFailed("The result could not be stored: No space left on device.")
        FullDisk.room -= 1
        super().put(source, key)


@pytest.mark.parametrize("room", [0, 1])
def test_a_storage_that_fails_leaves_no_part_of_the_result(
    make_runner: MakeRunner, queue: Queue, tmp_path: Path, room: int
) -> None:
    FullDisk.room = room
    request = replace(REQUEST, outputs=(OutputSpec("gif", 8.0), OutputSpec("zip", 8.0)))
    job = queue.submit(queued(request)).job
    make_runner(Quick(), storage=FullDisk(tmp_path / "results")).run(job.id)
    failed = read(queue, job)
    assert (failed.status, failed.error_code, failed.outputs) == (JobStatus.FAILED, "storage_failed", ())
    assert failed.error_message == "The result could not be stored: No space left on device."
    assert files_in(tmp_path / "results") == []
    assert files_in(tmp_path / "scratch") == []


@pytest.mark.parametrize("family", [Quick(), Raising(RuntimeError("x"))], ids=["success", "failure"])
def test_no_scratch_file_is_left(make_runner: MakeRunner, queue: Queue, tmp_path: Path, family: Quick) -> None:
    job = queue.submit(queued()).job
    make_runner(family).run(job.id)
    assert files_in(tmp_path / "scratch") == []


def test_a_worker_serves_on_after_a_failure(make_runner: MakeRunner, queue: Queue) -> None:
    one, two = queue.submit(queued()).job, queue.submit(queued()).job
    family = Quick(after_step=lambda step: 1 / 0)
    runner = make_runner(family)
    runner.run(one.id)
    family.after_step = lambda step: None
    runner.run(two.id)
    assert [read(queue, one).status.value, read(queue, two).status.value] == ["failed", "succeeded"]


def test_the_seconds_of_a_success_are_learned_and_of_a_failure_not(make_runner: MakeRunner, queue: Queue) -> None:
    make_runner(Raising(RuntimeError("x"))).run(queue.submit(queued()).job.id)
    assert queue.records.client.hgetall("polyreel:seconds") == {}
    make_runner(Quick()).run(queue.submit(queued()).job.id)
    assert list(queue.records.client.hgetall("polyreel:seconds")) == ["ltx-tiny"]


def test_the_rates_of_a_success_tell_denoising_from_the_rest(make_runner: MakeRunner, queue: Queue) -> None:
    # Each of the 4 steps takes longer than all that it says of itself: 0.02 s of denoising.
    make_runner(Quick(after_step=lambda step: time.sleep(0.02))).run(queue.submit(queued()).job.id)
    rates = parse_rates(queue.records.client.hget("polyreel:rates", "ltx-tiny"))
    assert rates is not None
    # 4 steps under guidance of 9 x 64 x 96 pixels / 1024, in thousands
    assert rates.denoising_s == pytest.approx(0.02 / 0.432)
    assert rates.rest_s > 0


@pytest.mark.usefixtures("_logs_put_back")
def test_the_start_of_a_job_is_logged_with_its_size_and_without_its_prompt(
    make_runner: MakeRunner, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs("info", "worker")
    job = queue.submit(queued()).job
    make_runner(Quick()).run(job.id)
    [started] = [line for line in capsys.readouterr().err.splitlines() if "job started" in line]
    assert all(word in started for word in (job.id, '"num_frames": 9', '"height": 64', '"width": 96', '"steps": 4'))
    assert "sunset" not in started


def test_the_runner_tells_which_job_it_has(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    told = []
    runner = make_runner(Quick(after_step=lambda step: told.append(runner.current)))
    runner.run(job.id)
    assert set(told) == {job.id}
    assert runner.current == ""


@pytest.fixture
def _logs_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logs_put_back")
def test_a_failure_is_logged_with_its_traceback_and_without_the_prompt(
    make_runner: MakeRunner, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs("debug", "worker")
    job = queue.submit(queued()).job
    make_runner(Raising(RuntimeError("the cause"))).run(job.id)
    logged = capsys.readouterr().err
    assert "RuntimeError: the cause" in logged
    assert job.id in logged
    assert "sunset" not in logged
