"""Claimed jobs from their claim to their end, with families of one behaviour each."""

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
from polyreel.job import JobStatus, VideoJob, attempt_key
from polyreel.leases import Claim, Wishes
from polyreel.logs import configure_logs
from polyreel.metrics import LOADS, SERIES, counted
from polyreel.queue import Queue
from polyreel.records import parse_rates
from polyreel.request import OutputSpec, PromptSpan
from polyreel.storage.local import LocalStorage
from polyreel.storage.memory import MemoryStorage
from tests.core.jobs import REQUEST, assert_all_adds_up, queued, reap, run_out
from tests.families.picky import Picky
from tests.families.quick import Quick
from tests.families.raising import Raising
from tests.families.unloadable import Unloadable
from tests.workers.claims import read, run, submit_and_run, take
from workers.prepare import Preparer
from workers.runner import JobRunner

MakeRunner = Callable[..., JobRunner]

pytestmark = pytest.mark.usefixtures("_quick_collections")


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_job_ends_with_its_file_stored_and_described(
    make_runner: MakeRunner, queue: Queue, stored: LocalStorage
) -> None:
    job = queue.submit(queued()).job
    run(make_runner(Quick()))
    ended = read(queue, job)
    assert (ended.status, ended.progress, ended.step, ended.total_steps) == (JobStatus.SUCCEEDED, 100, 4, 4)
    assert (ended.worker, ended.attempts, ended.error_code, ended.error_message) == ("one", 1, "", "")
    assert sorted(ended.timings) == [
        "decoding", "denoising", "encode", "generate", "load", "store", "text_encoding"
    ]  # fmt: skip
    assert 0 < ended.seconds_taken < 60
    (output,) = ended.outputs
    content = stored.path(f"out/{job.id}/1/{job.id}.gif").read_bytes()
    assert content.startswith(b"GIF89a")
    assert output.sha256 == hashlib.sha256(content).hexdigest()
    assert output.bytes == len(content)
    assert (output.key, output.format, output.media_type) == (f"out/{job.id}/1/{job.id}.gif", "gif", "image/gif")
    assert (output.height, output.width, output.num_frames, output.fps) == (64, 96, 9, 8.0)
    assert queue.records.open_ids() == []


def test_two_files_are_made_of_the_same_frames(make_runner: MakeRunner, queue: Queue, stored: LocalStorage) -> None:
    request = replace(REQUEST, outputs=(OutputSpec("gif", 8.0), OutputSpec("zip", 8.0)))
    job = queue.submit(queued(request)).job
    run(make_runner(Quick()))
    assert [output.key for output in read(queue, job).outputs] == [
        f"out/{job.id}/1/{job.id}.gif",
        f"out/{job.id}/1/{job.id}.zip",
    ]
    assert files_in(stored.folder) == [f"{job.id}.gif", f"{job.id}.zip"]


def test_progress_rises_with_every_step(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    seen = []

    def look(step: int) -> None:
        now = read(queue, job)
        seen.append((now.status.value, now.stage, now.step, now.progress))

    run(make_runner(Quick(after_step=look)))
    assert seen == [
        ("running", "denoising", 1, 23),
        ("running", "denoising", 2, 41),
        ("running", "denoising", 3, 59),
        ("running", "denoising", 4, 77),
    ]


# -- jobs that are cancelled, or given to another worker


def test_a_cancelled_job_frees_the_worker_within_one_step_and_leaves_no_file(
    make_runner: MakeRunner, queue: Queue, stored: LocalStorage
) -> None:
    job, next_job = queue.submit(queued()).job, queue.submit(queued()).job

    def cancel(step: int) -> None:
        if step == 2:
            queue.cancel(job.id)

    family = Quick(after_step=cancel)
    runner = make_runner(family)
    run(runner)
    assert family.steps_done == 3
    assert (read(queue, job).status, read(queue, job).outputs) == (JobStatus.CANCELLED, ())
    assert files_in(stored.folder) == []
    assert runner.jobs() == []
    run(runner)
    assert read(queue, next_job).status is JobStatus.SUCCEEDED


class Acting(MemoryStorage):
    """Does something once a file is stored and before the record says so."""

    act: Callable[[], object]

    def put(self, source: Path, key: str) -> None:
        super().put(source, key)
        self.act()


def acting(act: Callable[[], object]) -> Acting:
    storage = Acting()
    object.__setattr__(storage, "act", act)
    return storage


def test_a_job_whose_file_is_being_made_is_not_cancelled_any_more(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    said: list[str] = []
    run(make_runner(Quick(), storage=acting(lambda: said.append(queue.cancel(job.id)))))
    assert said == ["finishing"]
    assert read(queue, job).status is JobStatus.SUCCEEDED


def take_away(queue: Queue, job: VideoJob) -> None:
    """Let a worker's lease run out and be reaped, as happens to one that hangs."""
    run_out(queue.records.client, job.id)
    assert reap(queue.leases) == {job.id: "queued"}


def test_a_worker_that_lost_its_job_changes_nothing_and_leaves_no_file(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    two = make_runner(Quick(), worker="two")

    def give_to_another() -> None:
        take_away(queue, job)
        assert take(two) == [Claim(job.id, 2)]

    storage = acting(give_to_another)
    run(make_runner(Quick(), storage=storage))
    assert storage.files == {}
    assert (read(queue, job).worker, read(queue, job).status) == ("two", JobStatus.UPLOADING)


def test_of_two_attempts_one_is_published_and_the_late_one_leaves_nothing(
    make_runner: MakeRunner, queue: Queue
) -> None:
    job = queue.submit(queued()).job
    shared = MemoryStorage()
    two = make_runner(Quick(), worker="two", storage=shared)

    def overtake() -> None:
        take_away(queue, job)
        assert run(two) == [Claim(job.id, 2)]

    storage = acting(overtake)
    object.__setattr__(storage, "files", shared.files)  # one place for both, as a bucket is
    run(make_runner(Quick(), storage=storage))
    ended = read(queue, job)
    assert (ended.status, ended.worker, ended.attempts) == (JobStatus.SUCCEEDED, "two", 2)
    assert [output.key for output in ended.outputs] == [f"out/{job.id}/2/{job.id}.gif"]
    assert list(shared.files) == [f"out/{job.id}/2/{job.id}.gif"]
    assert attempt_key(job.output_keys[0], 2) == f"out/{job.id}/2/{job.id}.gif"
    assert_all_adds_up(queue.records.client)


def test_a_worker_that_lost_its_job_in_the_pipeline_stops_at_the_next_step(
    make_runner: MakeRunner, queue: Queue, stored: LocalStorage
) -> None:
    job = queue.submit(queued()).job
    two = make_runner(Quick(), worker="two")

    def overtake(step: int) -> None:
        if step == 2:
            take_away(queue, job)
            run(two)

    family = Quick(after_step=overtake)
    run(make_runner(family))
    assert family.steps_done == 3
    assert (read(queue, job).worker, read(queue, job).status) == ("two", JobStatus.SUCCEEDED)
    assert [path.parent.name for path in stored.folder.rglob("*.gif")] == ["2"]


def test_a_worker_that_was_taken_for_dead_keeps_a_job_that_nobody_claimed(
    make_runner: MakeRunner, queue: Queue
) -> None:
    job = queue.submit(queued()).job
    run(make_runner(Quick(after_step=lambda step: take_away(queue, job) if step == 2 else None)))
    assert (read(queue, job).status, read(queue, job).attempts) == (JobStatus.SUCCEEDED, 1)
    assert_all_adds_up(queue.records.client)


# -- several jobs in one call

PROMPTS = ("a fox", "a boat", "a storm")


def submit(queue: Queue, *prompts: str) -> list[VideoJob]:
    return [queue.submit(queued(replace(REQUEST, prompts=(PromptSpan(text, 9),)))).job for text in prompts]


def test_jobs_of_one_call_each_get_their_own_record(
    make_runner: MakeRunner, queue: Queue, stored: LocalStorage
) -> None:
    jobs = submit(queue, *PROMPTS)
    family = Quick()
    assert len(run(make_runner(family), most=4)) == 3
    assert family.steps_done == 4
    assert [prepared.request.prompts[0].prompt for prepared in family.requests] == ["a fox", "a boat", "a storm"]
    for job in jobs:
        ended = read(queue, job)
        assert (ended.status, ended.progress, ended.step, ended.attempts) == (JobStatus.SUCCEEDED, 100, 4, 1)
        assert [output.key for output in ended.outputs] == [f"out/{job.id}/1/{job.id}.gif"]
        assert (ended.receipt["prompts"][0]["prompt"], ended.receipt["batch_size"]) == (
            job.request.prompts[0].prompt,
            3,
        )
    assert files_in(stored.folder) == sorted(f"{job.id}.gif" for job in jobs)
    assert_all_adds_up(queue.records.client)


def test_each_job_of_a_call_is_charged_its_share_of_the_seconds(make_runner: MakeRunner, queue: Queue) -> None:
    """Quick says that a call took 0.01, 0.02 and 0.03 s, however many are in it."""
    jobs = submit(queue, *PROMPTS[:2])
    run(make_runner(Quick()), most=2)
    for job in jobs:
        timings = read(queue, job).timings
        assert (timings["text_encoding"], timings["denoising"], timings["decoding"]) == (0.005, 0.01, 0.015)


def test_one_of_a_call_that_cannot_be_made_fails_alone(make_runner: MakeRunner, queue: Queue) -> None:
    good, bad, other = submit(queue, "a fox", "an impossible fox", "a boat")
    run(make_runner(Picky()), most=4)
    assert [read(queue, job).status.value for job in (good, bad, other)] == ["succeeded", "failed", "succeeded"]
    assert read(queue, bad).error_message == "The pipeline returned NaN; try another seed."
    assert_all_adds_up(queue.records.client)


def test_one_of_a_call_that_is_cancelled_is_dropped_at_the_next_step_and_the_others_go_on(
    make_runner: MakeRunner, queue: Queue, stored: LocalStorage
) -> None:
    jobs = submit(queue, *PROMPTS)
    family = Quick(after_step=lambda step: queue.cancel(jobs[1].id) and None if step == 2 else None)
    run(make_runner(family), most=4)
    assert family.steps_done == 4
    assert [read(queue, job).status.value for job in jobs] == ["succeeded", "cancelled", "succeeded"]
    assert [read(queue, job).step for job in jobs] == [4, 2, 4]
    assert files_in(stored.folder) == sorted(f"{job.id}.gif" for job in (jobs[0], jobs[2]))
    assert_all_adds_up(queue.records.client)


def test_a_call_ends_within_a_step_when_all_its_jobs_are_cancelled(
    make_runner: MakeRunner, queue: Queue, stored: LocalStorage
) -> None:
    jobs = submit(queue, *PROMPTS)
    family = Quick(after_step=lambda step: queue.cancel(jobs[step - 1].id) and None if step <= 3 else None)
    runner = make_runner(replace_steps(family, 50))
    run(runner, most=4)
    assert family.steps_done == 4
    assert [read(queue, job).status.value for job in jobs] == ["cancelled"] * 3
    assert files_in(stored.folder) == []
    assert runner.jobs() == []


def replace_steps(family: Quick, steps: int) -> Quick:
    """Let a family take so many steps, whatever it is asked for."""
    generate = family.generate

    def longer(model, requests, on_progress):  # as Quick.generate
        more = [replace(one, request=replace(one.request, num_inference_steps=steps)) for one in requests]
        return generate(model, more, on_progress)

    family.generate = longer
    return family


def test_a_call_over_its_time_sends_its_jobs_back_and_each_then_runs_alone(
    make_runner: MakeRunner, queue: Queue
) -> None:
    jobs = submit(queue, *PROMPTS)
    runner = make_runner(Raising(JobTimeoutException("60 s")))
    assert len(run(runner, most=4)) == 3
    assert runner.jobs() == []
    for job in jobs:
        back = queue.records.get(job.id)
        assert back is not None
        assert (back.claimable, back.job.attempts, back.job.error_code) == (True, 1, "")
    for _ in jobs:
        assert len(run(runner, most=4)) == 1
    assert [read(queue, job).error_code for job in jobs] == ["timeout"] * 3


def test_a_device_that_is_lost_sends_the_jobs_back_counted_and_ends_the_worker(
    make_runner: MakeRunner, queue: Queue
) -> None:
    jobs = submit(queue, "a fox", "a boat")
    runner = make_runner(Raising(RuntimeError("CUDA error: an illegal memory access was encountered")))
    run(runner, most=4)
    assert runner.attempts.fitness.unfit == "the device does not answer in this process any more"
    for job in jobs:
        back = queue.records.get(job.id)
        assert back is not None
        assert (back.claimable, back.job.attempts, back.job.status.is_terminal) == (True, 1, False)
    assert runner.jobs() == []


def test_a_request_that_cannot_be_prepared_fails_alone(
    make_runner: MakeRunner, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = submit(queue, *PROMPTS)
    runner = make_runner(Quick())
    prepare = Preparer.prepare

    def lost_its_lora(self, request):  # as Preparer.prepare
        if request.prompts[0].prompt == "a boat":
            raise AdapterUnavailable("The LoRA watercolour is gone.")
        return prepare(self, request)

    monkeypatch.setattr(Preparer, "prepare", lost_its_lora)
    run(runner, most=4)
    assert [read(queue, job).status.value for job in jobs] == ["succeeded", "failed", "succeeded"]
    assert read(queue, jobs[1]).error_message == "The LoRA watercolour is gone."


def test_a_mistake_of_ours_sends_the_jobs_back_counted_and_the_worker_serves_on(
    make_runner: MakeRunner, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue.submit(queued()).job
    runner = make_runner(Quick())
    with monkeypatch.context() as patch:
        patch.setattr(runner._finisher, "hand", lambda videos: 1 / 0)
        for _ in range(3):
            run(runner)
            assert runner.jobs() == []
    assert (read(queue, job).status, read(queue, job).error_code) == (JobStatus.FAILED, "worker_died")
    assert submit_and_run(runner)[0].status is JobStatus.SUCCEEDED


# -- ends


def test_a_family_that_fails_says_why_to_the_client(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    run(make_runner(Raising(GenerationFailed("The pipeline returned NaN; try another seed."))))
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
    run(make_runner(Unloadable()))
    failed = read(queue, job)
    assert (failed.error_code, failed.error_message) == (
        "checkpoint_unavailable",
        "The model ltx-tiny cannot run on this server; the operator finds the reason in the log.",
    )
    assert "The checkpoint has no model_index.json." in capsys.readouterr().err


def test_a_lora_that_cannot_be_used_is_named_to_the_client(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    run(make_runner(Raising(AdapterUnavailable("The LoRA watercolour was made for another model."))))
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
    run(make_runner(Quick()))
    failed = read(queue, job)
    assert (failed.error_code, failed.error_message) == (
        "encoding_failed",
        "The frames could not be encoded as a file; the operator finds the reason in the worker's log.",
    )


def test_an_unknown_exception_keeps_its_text_to_itself(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    run(make_runner(Raising(RuntimeError("secret path /srv/weights"))))
    failed = read(queue, job)
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "internal_error")
    assert failed.error_message == (f"The job failed inside the server; the operator finds job {job.id} in the log.")
    assert "secret" not in "".join(queue.records.client.hgetall(f"polyreel:job:{job.id}").values())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_job_that_took_too_long_says_so(make_runner: MakeRunner, queue: Queue, wrapped: bool) -> None:
    job = queue.submit(queued()).job
    run(make_runner(Raising(JobTimeoutException("60 s"), wrapped=wrapped)))
    failed = read(queue, job)
    assert failed.error_code == "timeout"
    assert failed.error_message == "The job ran longer than this server allows (job_timeout_s)."


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt])
def test_a_stop_hands_the_jobs_back_uncounted_and_goes_on_up(
    make_runner: MakeRunner, queue: Queue, stop: type[BaseException]
) -> None:
    jobs = submit(queue, "a fox", "a boat")
    runner = make_runner(Raising(stop()))
    with pytest.raises(stop):
        run(runner, most=4)
    for job in jobs:
        handed_back = queue.records.get(job.id)
        assert handed_back is not None
        assert (handed_back.claimable, handed_back.job.attempts, handed_back.job.worker) == (True, 0, "")
        assert not handed_back.job.status.is_terminal
    assert (runner.current, runner.jobs()) == ((), [])
    assert_all_adds_up(queue.records.client)


def test_jobs_that_were_claimed_and_not_begun_are_handed_back_uncounted(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    runner = make_runner(Quick())
    take(runner)
    runner.hand_back()
    back = queue.records.get(job.id)
    assert back is not None
    assert (back.claimable, back.job.attempts, runner.jobs()) == (True, 0, [])


def test_a_stop_in_the_middle_of_handing_back_leaves_nothing_that_counts(
    make_runner: MakeRunner, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue.submit(queued()).job
    runner = make_runner(Quick())
    take(runner)

    def stop(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as cut_off:
        cut_off.setattr(queue.records, "release", stop)
        with pytest.raises(SystemExit):
            runner.hand_back()
    assert runner.jobs() == [job.id]
    runner.hand_back()
    assert queue.leases.expire_worker("one") == {}
    back = queue.records.get(job.id)
    assert back is not None
    assert (back.claimable, back.job.attempts, runner.jobs()) == (True, 0, [])


def test_a_stop_before_the_answer_to_a_claim_hands_back_what_was_claimed(
    make_runner: MakeRunner, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue.submit(queued()).job
    runner = make_runner(Quick())
    script = queue.leases._claim

    def cut_off(**terms: object) -> None:
        script(**terms)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(queue.leases, "_claim", cut_off)
        with pytest.raises(SystemExit):
            runner.claim(Wishes(["ltx-tiny"]))
    assert (read(queue, job).attempts, runner.jobs()) == (1, [])
    runner.hand_back()
    back = queue.records.get(job.id)
    assert back is not None
    assert (back.claimable, back.job.attempts, runner.jobs()) == (True, 0, [])
    [again] = runner.claim(Wishes(["ltx-tiny"]))
    assert (again, runner.jobs()) == (Claim(job.id, 2), [job.id])


def test_a_job_that_another_worker_has_is_not_run(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    family = Quick()
    runner = make_runner(family)
    claims = take(runner)
    take_away(queue, job)
    take(make_runner(Quick(), worker="two"))
    runner.run(claims)
    assert (family.steps_done, family.loads, runner.jobs()) == (0, [], [])
    assert read(queue, job).worker == "two"


def test_a_job_that_was_cancelled_after_its_claim_is_not_run(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    family = Quick()
    runner = make_runner(family)
    claims = take(runner)
    queue.cancel(job.id)
    runner.run(claims)
    assert (family.steps_done, runner.jobs(), runner.current) == (0, [], ())
    assert (read(queue, job).status, read(queue, job).attempts) == (JobStatus.CANCELLED, 1)


def test_a_claim_without_a_record_is_nothing(make_runner: MakeRunner, queue: Queue) -> None:
    runner = make_runner(Quick())
    claim = Claim("7b1e0000-0000-4000-8000-000000000000", 1)
    runner.keeping.hold([claim])
    runner.run([claim])
    assert queue.records.client.keys("polyreel:*") == []
    assert runner.jobs() == []


def test_a_record_that_cannot_be_read_fails_alone(make_runner: MakeRunner, queue: Queue) -> None:
    broken, good = submit(queue, "a fox", "a boat")
    client = queue.records.client
    client.hset(f"polyreel:job:{broken.id}", "request", '{"from": "another version"}')
    runner = make_runner(Quick())
    assert len(run(runner, most=4)) == 2
    assert client.hmget(f"polyreel:job:{broken.id}", "status", "error_code", "error_message") == [
        "failed",
        "unreadable",
        "The record of this job cannot be read; submit it again.",
    ]
    assert read(queue, good).status is JobStatus.SUCCEEDED
    assert runner.jobs() == []


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
    run(make_runner(Quick(), storage=FullDisk(tmp_path / "results")))
    failed = read(queue, job)
    assert (failed.status, failed.error_code, failed.outputs) == (JobStatus.FAILED, "storage_failed", ())
    assert failed.error_message == "The result could not be stored: No space left on device."
    assert files_in(tmp_path / "results") == []
    assert files_in(tmp_path / "scratch") == files_in(tmp_path / "spool") == []


@pytest.mark.parametrize("family", [Quick(), Raising(RuntimeError("x"))], ids=["success", "failure"])
def test_no_scratch_file_is_left(make_runner: MakeRunner, queue: Queue, tmp_path: Path, family: Quick) -> None:
    queue.submit(queued())
    run(make_runner(family))
    assert files_in(tmp_path / "scratch") == files_in(tmp_path / "spool") == []


def test_a_worker_serves_on_after_a_failure(make_runner: MakeRunner, queue: Queue) -> None:
    one, two = queue.submit(queued()).job, queue.submit(queued()).job
    family = Quick(after_step=lambda step: 1 / 0)
    runner = make_runner(family)
    run(runner)
    family.after_step = lambda step: None
    run(runner)
    assert [read(queue, one).status.value, read(queue, two).status.value] == ["failed", "succeeded"]


def test_the_seconds_of_a_success_are_learned_and_of_a_failure_not(make_runner: MakeRunner, queue: Queue) -> None:
    submit_and_run(make_runner(Raising(RuntimeError("x"))))
    assert queue.records.client.hgetall("polyreel:seconds") == {}
    submit_and_run(make_runner(Quick()))
    assert list(queue.records.client.hgetall("polyreel:seconds")) == ["ltx-tiny"]


def test_the_rates_of_a_success_tell_denoising_from_the_rest(make_runner: MakeRunner, queue: Queue) -> None:
    # Each of the 4 steps takes longer than all that it says of itself: 0.02 s of denoising.
    submit_and_run(make_runner(Quick(after_step=lambda step: time.sleep(0.02))))
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
    run(make_runner(Quick()))
    [started] = [line for line in capsys.readouterr().err.splitlines() if "job started" in line]
    assert all(word in started for word in (job.id, '"num_frames": 9', '"height": 64', '"width": 96', '"steps": 4'))
    assert "sunset" not in started


def test_each_load_of_a_model_is_counted_and_a_job_without_one_is_none(make_runner: MakeRunner, queue: Queue) -> None:
    def loads() -> dict[tuple[str, ...], int]:
        return counted(LOADS, queue.records.client.hgetall(SERIES))

    runner = make_runner(Quick())
    assert loads() == {}
    for _ in range(2):
        queue.submit(queued())
        run(runner)
    assert loads() == {("ltx-tiny",): 1}
    runner.residency.unload("ltx-tiny")
    queue.submit(queued())
    run(runner)
    assert loads() == {("ltx-tiny",): 2}


def test_the_runner_tells_which_job_it_has(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    told = []
    runner = make_runner(Quick(after_step=lambda step: told.append(runner.current)))
    run(runner)
    assert set(told) == {(job.id,)}
    assert runner.current == ()


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
    run(make_runner(Raising(RuntimeError("the cause"))))
    logged = capsys.readouterr().err
    assert "RuntimeError: the cause" in logged
    assert job.id in logged
    assert "sunset" not in logged
