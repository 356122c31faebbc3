"""Out of memory costs the job that met it and no other: it is tried again with less; then the worker checks itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import workers.attempts
from models import PreparedRequest
from polyreel.entries import Cost, Geometry, Placement
from polyreel.errors import CheckpointUnavailable, GenerationFailed, OutOfMemory
from polyreel.job import JobStatus, VideoJob
from polyreel.queue import Queue
from polyreel.request import PromptSpan, Upscale, VideoRequest
from polyreel.storage.local import LocalStorage
from tests.core.jobs import REQUEST, queued
from tests.families.quick import Quick
from tests.families.raising import Raising
from tests.families.running_out import OutOfMemoryError, RunningOut
from tests.workers.claims import read, runner_for, submit_and_run
from tests.workers.claims import run as run_next
from workers.failures import as_out_of_memory, is_device_lost
from workers.memory import let_go
from workers.out_of_memory import Ladder, Ladders, explained
from workers.residency import Residency
from workers.runner import JobRunner
from workers.self_check import smallest_request

MakeRunner = Callable[..., JobRunner]

pytestmark = pytest.mark.usefixtures("_quick_collections")

#: Larger than a self-check's video, which is 9 frames of 64x64.
LARGE = replace(REQUEST, prompts=(PromptSpan("a large one", 33),))


def run(runner: JobRunner, queue: Queue, request: VideoRequest = REQUEST) -> VideoJob:
    [job] = submit_and_run(runner, queued(request))
    return job


def configured(runner: JobRunner, **changes: object) -> JobRunner:
    """Change the catalogue entry that a runner serves."""
    models = runner.residency.catalogue.models
    models["ltx-tiny"] = models["ltx-tiny"].model_copy(update=changes)
    return runner


def is_small(placement: Placement, request: VideoRequest | None) -> bool:
    """What a device can hold that is too small for `LARGE` in any placement."""
    return request is None or request.num_frames < 33


# -- the ladder


@pytest.mark.parametrize(
    ("usual", "stage", "others", "rungs"),
    [
        (Placement(mode="resident"), "denoising", False, ["cpu_offload", "group_offload", "vae_tiling"]),
        (Placement(mode="resident"), "text_encoding", False, ["cpu_offload", "group_offload", "vae_tiling"]),
        (Placement(mode="resident"), "load", False, ["cpu_offload", "group_offload"]),
        (Placement(mode="auto"), "load", False, ["cpu_offload", "group_offload"]),
        (Placement(mode="cpu_offload"), "denoising", False, ["group_offload", "vae_tiling"]),
        (Placement(mode="group_offload"), "denoising", False, ["vae_tiling"]),
        (Placement(mode="group_offload", vae_tiling=True), "denoising", False, []),
        (Placement(mode="group_offload"), "load", False, []),
        (Placement(mode="resident"), "decoding", False, ["vae_tiling", "cpu_offload", "group_offload"]),
        (Placement(mode="resident", vae_tiling=True), "decoding", False, ["cpu_offload", "group_offload"]),
        (Placement(mode="group_offload"), "decoding", False, ["vae_tiling"]),
        (Placement(mode="resident"), "denoising", True, ["alone", "cpu_offload", "group_offload", "vae_tiling"]),
        (Placement(mode="resident", retry_with_less=False), "decoding", True, []),
    ],
)
def test_each_rung_is_taken_once(usual: Placement, stage: str, others: bool, rungs: list[str]) -> None:
    ladder = Ladder(usual)
    while ladder.step_down(stage, others=others):
        assert len(ladder.rungs) < 9
    assert ladder.rungs == rungs


def test_a_lower_rung_keeps_what_the_model_was_loaded_with() -> None:
    ladder = Ladder(Placement(mode="auto"))
    ladder.stands_on(Placement(mode="cpu_offload", fp8=True, vae_slicing=True))  # as "auto" came out
    assert ladder.step_down("decoding", others=False)
    assert ladder.placement == Placement(mode="cpu_offload", fp8=True, vae_slicing=True, vae_tiling=True)
    assert ladder.step_down("denoising", others=False)
    assert ladder.placement == Placement(mode="group_offload", fp8=True, vae_slicing=True, vae_tiling=True)


@pytest.mark.parametrize(
    ("stage", "fits", "rungs", "placements"),
    [
        ("denoising", "cpu_offload", ["cpu_offload"], ["resident", "cpu_offload"]),
        ("denoising", "group_offload", ["cpu_offload", "group_offload"], ["resident", "cpu_offload", "group_offload"]),
        ("load", "cpu_offload", ["cpu_offload"], ["resident", "cpu_offload"]),
        ("decoding", "tiling", ["vae_tiling"], ["resident", "resident+tiling"]),
        # A VAE that encodes pictures: the stage is still called so.
        (
            "text_encoding",
            "tiling",
            ["cpu_offload", "group_offload", "vae_tiling"],
            ["resident", "cpu_offload", "group_offload", "group_offload+tiling"],
        ),
        (
            "decoding",
            "cpu_offload",
            ["vae_tiling", "cpu_offload"],
            ["resident", "resident+tiling", "cpu_offload+tiling"],
        ),
    ],
)
def test_a_job_is_made_by_the_first_rung_that_fits_and_its_receipt_says_which(
    make_runner: MakeRunner, queue: Queue, stage: str, fits: str, rungs: list[str], placements: list[str]
) -> None:
    def enough(placement: Placement, request: VideoRequest | None) -> bool:
        return placement.mode == fits or (fits == "tiling" and placement.vae_tiling)

    family = RunningOut(stage, enough)
    runner = make_runner(family)
    job = run(runner, queue)
    assert (job.status, job.error_code) == (JobStatus.SUCCEEDED, "")
    assert job.receipt["after_out_of_memory"] == rungs
    assert family.placements == placements
    assert runner.attempts.fitness.unfit == ""


def test_the_next_job_runs_in_the_usual_placement_again(make_runner: MakeRunner, queue: Queue) -> None:
    family = RunningOut("denoising", lambda placement, r: is_small(placement, r) or placement.mode == "cpu_offload")
    runner = make_runner(family)
    assert run(runner, queue, LARGE).receipt["after_out_of_memory"] == ["cpu_offload"]
    small = run(runner, queue)
    assert "after_out_of_memory" not in small.receipt
    assert small.receipt["placement"] == "resident"
    assert family.placements == ["resident", "cpu_offload", "resident"]


def test_the_next_job_as_large_begins_where_the_first_one_ended(make_runner: MakeRunner, queue: Queue) -> None:
    family = RunningOut("decoding", lambda placement, request: is_small(placement, request) or placement.vae_tiling)
    runner = make_runner(family)
    for _ in range(3):
        job = run(runner, queue, LARGE)
        assert (job.status, job.receipt["after_out_of_memory"]) == (JobStatus.SUCCEEDED, ["vae_tiling"])
    assert family.placements == ["resident", "resident+tiling"]
    assert run(runner, queue).receipt["placement"] == "resident"
    run(runner, queue, LARGE)
    assert family.placements == ["resident", "resident+tiling", "resident", "resident+tiling"]


def test_a_job_that_fits_nowhere_is_loaded_once_the_next_time(make_runner: MakeRunner, queue: Queue) -> None:
    family = RunningOut("denoising", is_small)
    runner = make_runner(family)
    everywhere = ["resident", "cpu_offload", "group_offload", "group_offload+tiling"]
    for placements in (everywhere, everywhere):  # the second time it is still loaded as it was
        assert run(runner, queue, LARGE).error_code == "gpu_out_of_memory"
        assert family.placements == placements


def test_a_model_that_ran_out_while_it_loaded_is_loaded_with_less_for_any_job(
    make_runner: MakeRunner, queue: Queue
) -> None:
    family = RunningOut("load", lambda placement, request: placement.mode == "cpu_offload")
    runner = make_runner(family)
    run(runner, queue, LARGE)
    assert run(runner, queue).receipt["after_out_of_memory"] == ["cpu_offload"]
    assert family.placements == ["resident", "cpu_offload"]


def test_a_job_that_needed_the_device_alone_gets_it_at_once_the_next_time(
    make_residency: Callable[..., Residency], queue: Queue, tmp_path: Path
) -> None:
    family = RunningOut("denoising")
    residency = make_residency(capacity=2, **{"ltx-tiny": family, "other": Quick()})
    family.fits = lambda placement, request: residency.loaded == ["ltx-tiny"]
    runner = runner_for(queue, residency, LocalStorage(tmp_path / "results"), tmp_path / "scratch")
    started: list[str] = []

    def make() -> None:
        residency.get("other")
        started.clear()
        runner.attempts.make(PreparedRequest(REQUEST), lambda: started.append("start"), lambda progress: None, {})
        assert residency.loaded == ["ltx-tiny"]

    make()
    assert started == ["start"] * 3  # the first try, between the two, and the second
    make()
    assert started == ["start"]


def test_out_of_memory_is_forgotten_after_an_hour_and_holds_for_larger_jobs_alone() -> None:
    now = 0.0
    usual, ladders = Placement(mode="resident"), Ladders(lambda: now)
    ladder = ladders.begin(LARGE, usual)
    for _ in range(2):
        ladder.step_down("denoising", others=False)
        ladders.came_down(LARGE, "denoising", ladder)
    larger = replace(LARGE, height=128)
    assert ladders.begin(larger, usual).rungs == ["cpu_offload", "group_offload"]
    assert ladders.begin(larger, usual).placement == Placement(mode="group_offload")
    assert ladders.begin(REQUEST, usual).rungs == []
    assert ladders.begin(replace(LARGE, model="other"), usual).rungs == []
    upscale = Upscale(height=640, width=960, strength=0.5, guidance_scale=3.0, num_inference_steps=4)
    assert ladders.begin(replace(REQUEST, upscale=upscale), usual).rungs == ["cpu_offload", "group_offload"]
    now = 3599.0
    assert ladders.begin(LARGE, usual).rungs == ["cpu_offload", "group_offload"]
    now = 3600.0
    assert ladders.begin(LARGE, usual).rungs == []


def test_the_smallest_job_counts_for_each_rung() -> None:
    usual, ladders = Placement(mode="resident"), Ladders()
    for request, steps in ((LARGE, 2), (REQUEST, 1), (LARGE, 1)):
        ladder = Ladder(usual)
        for _ in range(steps):
            ladder.step_down("denoising", others=False)
            ladders.came_down(request, "denoising", ladder)
    assert ladders.begin(REQUEST, usual).rungs == ["cpu_offload"]
    assert ladders.begin(LARGE, usual).rungs == ["cpu_offload", "group_offload"]
    assert ladders.begin(replace(REQUEST, height=32), usual).rungs == []


def test_without_leave_to_retry_the_job_fails_at_once(make_runner: MakeRunner, queue: Queue) -> None:
    family = RunningOut("denoising", is_small)
    runner = configured(make_runner(family), placement=Placement(mode="resident", retry_with_less=False))
    assert run(runner, queue, LARGE).error_code == "gpu_out_of_memory"
    assert family.placements == ["resident"]


def test_the_other_models_go_first(make_residency: Callable[..., Residency], queue: Queue, tmp_path: Path) -> None:
    family = RunningOut("denoising")
    residency = make_residency(capacity=3, **{"ltx-tiny": family, "other": Quick(), "pinned": Quick()})
    residency.pin("pinned")
    for name in ("other", "pinned"):
        residency.get(name)
    family.fits = lambda placement, request: residency.loaded == ["pinned", "ltx-tiny"]
    runner = runner_for(queue, residency, LocalStorage(tmp_path / "results"), tmp_path / "scratch")
    assert run(runner, queue).receipt["after_out_of_memory"] == ["alone"]
    assert family.placements == ["resident"]  # it was not loaded again


def test_a_job_cancelled_meanwhile_is_not_tried_again(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job

    def cancelled(placement: Placement, request: VideoRequest | None) -> bool:
        queue.cancel(job.id)
        return False

    family = RunningOut("denoising", cancelled)
    run_next(make_runner(family))
    assert read(queue, job).status is JobStatus.CANCELLED
    assert family.placements == ["resident"]


def test_a_slow_second_try_teaches_no_rate(make_runner: MakeRunner, queue: Queue) -> None:
    family = RunningOut("denoising", lambda placement, request: placement.mode == "cpu_offload")
    run(make_runner(family), queue)
    assert queue.records.client.hgetall("polyreel:rates") == {}


# -- what the client is told


@pytest.mark.parametrize("stage", ["load", "text_encoding", "denoising", "decoding"])
def test_a_job_that_fits_nowhere_fails_with_its_numbers(make_runner: MakeRunner, queue: Queue, stage: str) -> None:
    job = run(make_runner(RunningOut(stage)), queue)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "gpu_out_of_memory")
    assert job.error_message == (
        f"The GPU has too little memory for 9 frames of 96x64 (it ran out at: {stage}). "
        "Ask for fewer frames or a smaller size."
    )


def test_the_message_names_what_would_fit_where_the_costs_are_known(
    make_runner: MakeRunner, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.attempts, "device_memory", lambda device: (1, 10_800_000_000))
    costs = {"geometry": Geometry(frames=8, pixels=32), "cost": Cost(mb_per_1k_tokens=1_000_000)}
    job = run(configured(make_runner(RunningOut("denoising", is_small)), **costs), queue, LARGE)
    assert job.error_message == (
        "The GPU has too little memory for 33 frames of 96x64 (it ran out at: denoising). What fits: 1 frame of 96x64."
    )


def test_no_number_is_named_that_the_device_has_just_disproved(make_runner: MakeRunner) -> None:
    entry = make_runner(Quick()).residency.catalogue["ltx-tiny"]
    entry = entry.model_copy(update={"geometry": Geometry(frames=8, pixels=32), "cost": Cost(mb_per_1k_tokens=1)})
    said = explained(OutOfMemory("x", "decoding"), entry, LARGE, (1, 80_000_000_000)).message
    assert said.endswith("(it ran out at: decoding). Ask for fewer frames or a smaller size.")


@pytest.mark.parametrize(
    ("err", "stage"),
    [
        (OutOfMemory("x", "decoding"), "decoding"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "denoising"),
        (RuntimeError("CUDA error: out of memory"), "denoising"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "denoising"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"), "denoising"),
        (MemoryError(), "denoising"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (GenerationFailed("The model returned NaN."), None),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_memory_that_ran_out_is_known_by_its_cause(err: Exception, stage: str | None, wrapped: bool) -> None:
    if wrapped and not isinstance(err, OutOfMemory):
        outer: Exception = GenerationFailed("The pipeline failed.")
        outer.__cause__ = err
    else:
        outer = err
    found = as_out_of_memory(outer)
    assert (found.stage if found else None) == stage


def test_a_checkpoint_that_ran_out_of_memory_is_not_called_broken() -> None:
    err = CheckpointUnavailable("The folder does not load.")
    err.__cause__ = OutOfMemoryError("CUDA out of memory")
    found = as_out_of_memory(err)
    assert found is not None
    assert found.stage == "load"


def test_an_error_that_is_its_own_context_is_looked_at_once() -> None:
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__cause__, second.__context__ = second, first
    assert as_out_of_memory(first) is None
    let_go(first)


# -- the worker afterwards


def test_after_a_failure_the_worker_makes_the_smallest_video_before_the_next_job(
    make_runner: MakeRunner, queue: Queue
) -> None:
    family = RunningOut("denoising", is_small)
    runner = make_runner(family)
    assert run(runner, queue, LARGE).status is JobStatus.FAILED
    [checked] = [r.request for r in family.requests]
    assert (checked.num_frames, checked.height, checked.width, checked.num_inference_steps) == (9, 64, 64, 1)
    assert runner.attempts.fitness.unfit == ""
    small = run(runner, queue)
    assert (small.status, small.receipt["placement"]) == (JobStatus.SUCCEEDED, "resident")


def test_a_model_that_needs_a_picture_gets_one_in_the_self_check(make_runner: MakeRunner) -> None:
    entry = make_runner(Quick()).residency.catalogue["ltx-tiny"].model_copy(update={"tasks": ("i2v", "first_last")})
    prepared = smallest_request(entry)
    assert [image.frame_index for image in prepared.request.images] == [0]
    assert [picture.shape for picture in prepared.images] == [(64, 64, 3)]


def test_a_worker_that_cannot_make_the_smallest_video_is_unfit(make_runner: MakeRunner, queue: Queue) -> None:
    runner = make_runner(RunningOut("denoising"))
    assert run(runner, queue).status is JobStatus.FAILED
    assert runner.attempts.fitness.unfit == "the self-check failed with OutOfMemory"


def test_a_model_that_does_not_even_load_says_nothing_against_the_worker(make_runner: MakeRunner, queue: Queue) -> None:
    runner = make_runner(RunningOut("load"))
    assert run(runner, queue).error_code == "gpu_out_of_memory"
    assert runner.attempts.fitness.unfit == ""
    assert runner.attempts.unavailable == {}


def test_a_device_that_multiplies_wrongly_makes_the_worker_unfit(
    make_runner: MakeRunner, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: str) -> None:
        raise RuntimeError(f"{device} multiplies wrongly.")

    monkeypatch.setattr(workers.attempts, "check_device", broken)
    runner = make_runner(RunningOut("denoising", is_small))
    run(runner, queue, LARGE)
    assert runner.attempts.fitness.unfit == "the self-check failed with RuntimeError"


def test_three_jobs_in_a_row_without_memory_end_the_worker(make_runner: MakeRunner, queue: Queue) -> None:
    runner = make_runner(RunningOut("denoising", is_small))
    for _ in range(2):
        run(runner, queue, LARGE)
        assert runner.attempts.fitness.unfit == ""
    run(runner, queue, LARGE)
    assert runner.attempts.fitness.unfit == "3 jobs in a row ran out of memory"


def test_a_success_in_between_counts_from_the_start(make_runner: MakeRunner, queue: Queue) -> None:
    runner = make_runner(RunningOut("denoising", is_small))
    for request in (LARGE, LARGE, REQUEST, LARGE, LARGE):
        run(runner, queue, request)
    assert runner.attempts.fitness.unfit == ""


# -- a device that is lost

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"


class AcceleratorError(RuntimeError):
    """Called like torch's, which is not imported here."""


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("error", [RuntimeError(ILLEGAL), AcceleratorError(ILLEGAL)], ids=["runtime", "accelerator"])
def test_a_lost_device_hands_the_job_back_counted_and_ends_the_worker(
    make_runner: MakeRunner, queue: Queue, error: Exception, wrapped: bool
) -> None:
    job = queue.submit(queued()).job
    runner = make_runner(Raising(error, wrapped=wrapped))
    run_next(runner)
    handed_back = queue.records.get(job.id)
    assert handed_back is not None
    assert (handed_back.claimable, handed_back.job.attempts, handed_back.job.worker) == (True, 1, "")
    assert not handed_back.job.status.is_terminal
    assert runner.attempts.fitness.unfit == "the device does not answer in this process any more"


def test_the_job_that_takes_the_device_down_three_times_is_given_up(make_runner: MakeRunner, queue: Queue) -> None:
    job = queue.submit(queued()).job
    for worker in ("one", "two", "three"):
        run_next(make_runner(Raising(RuntimeError(ILLEGAL)), worker=worker))
    failed = read(queue, job)
    assert (failed.status, failed.error_code, failed.attempts) == (JobStatus.FAILED, "worker_died", 3)


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: unspecified launch failure", True),
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: out of memory", False),
        ("CUDA error: invalid configuration argument", False),
        ("an illegal memory access was encountered", False),  # somebody's own words
    ],
)
def test_only_errors_that_stay_mean_a_lost_device(message: str, is_lost: bool) -> None:
    assert is_device_lost(RuntimeError(message)) is is_lost


def test_another_error_of_the_device_fails_the_job_and_is_looked_into(make_runner: MakeRunner, queue: Queue) -> None:
    family = Raising(RuntimeError("CUDA error: invalid configuration argument"), wrapped=True)
    runner = make_runner(family)
    assert run(runner, queue).error_code == "generation_failed"
    assert runner.attempts.fitness.unfit == "the self-check failed with GenerationFailed"
