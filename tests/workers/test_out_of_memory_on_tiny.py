"""Out of memory inside real pipelines: at load, at a step and while decoding; the next job is as in a fresh process."""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.tiny import build
from polyreel.catalogue import Catalogue
from polyreel.entries import ServedModel
from polyreel.job import JobStatus, VideoJob
from polyreel.queue import Queue
from polyreel.request import ImageCondition, PromptSpan, VideoRequest
from polyreel.storage.local import LocalStorage
from tests.core.jobs import REQUEST, queued
from tests.workers.claims import runner_for, submit_and_run
from workers.residency import Residency
from workers.runner import JobRunner

pytestmark = pytest.mark.usefixtures("_quick_collections")

SMALL = replace(REQUEST, height=64, width=64, num_inference_steps=2)
LARGE = replace(SMALL, prompts=(PromptSpan("a large one", 25),))

#: Makes the file of a request as a worker does, and prints its hash.
FRESH = """
import hashlib, json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from models import Checkpoint, PreparedRequest, families
from polyreel.entries import Placement
from polyreel.formats import formats
from polyreel.request import VideoRequest
request = VideoRequest.from_dict(json.loads(sys.argv[2]))
family = families()["ltx"]
model = family.load(Checkpoint(Path(sys.argv[1])), device="cpu", dtype="float32", placement=Placement(mode="resident"))
[video] = family.generate(model, [PreparedRequest(request)], lambda progress: None)
target = Path(sys.argv[3])
formats()["gif"].encode(video.frames, request.outputs[0], target)
print(hashlib.sha256(target.read_bytes()).hexdigest())
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("ltx", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def fresh(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of `SMALL`'s file, made by a process that has done nothing else."""
    target = tmp_path_factory.mktemp("fresh") / "file.gif"
    arguments = [str(folder), json.dumps(SMALL.to_dict()), str(target)]
    done = subprocess.run([sys.executable, "-c", FRESH, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def make_runner(queue: Queue, folder: Path, tmp_path: Path) -> Callable[..., JobRunner]:
    """Return a factory of runners, which write no receipt into their files unless asked to: `FRESH` has none."""

    def make(*, file_metadata: bool = False) -> JobRunner:
        catalogue = Catalogue({"ltx-tiny": ServedModel(family="ltx", checkpoint=str(folder))})
        residency = Residency(catalogue, tmp_path / "built", "cpu", 1)
        storage = LocalStorage(tmp_path / "results")
        return runner_for(queue, residency, storage, tmp_path / "scratch", file_metadata=file_metadata)

    return make


@pytest.fixture
def runner(make_runner: Callable[..., JobRunner]) -> JobRunner:
    return make_runner()


def run(runner: JobRunner, request: VideoRequest) -> VideoJob:
    [job] = submit_and_run(runner, queued(request))
    return job


@contextmanager
def no_memory(class_name: str, when: Callable[[Any, tuple[Any, ...]], bool]) -> Iterator[list[Any]]:
    """Let every module of a class run out of memory where `when(module, inputs)` says so.

    A call fails too when a tensor of an earlier one is still alive: a device has no room for both.

    Yields:
        Weak references to the tensors that those calls held.
    """
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    held: list[Any] = []

    def hook(module: Any, inputs: tuple[Any, ...]) -> None:
        if type(module).__name__ != class_name:
            return
        assert [reference() for reference in held if reference() is not None] == []  # of an earlier try
        if when(module, inputs):
            scratch = torch.zeros(1000)
            held.append(weakref.ref(scratch))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = register_module_forward_pre_hook(hook)
    try:
        yield held
    finally:
        handle.remove()


def next_times(count: int) -> Callable[..., bool]:
    """Return a condition that holds the next `count` times it is asked."""
    left = iter([True] * count)
    return lambda *_: next(left, False)


def is_large(_block: Any, inputs: tuple[Any, ...]) -> bool:
    return bool(inputs[0].shape[2] > 2)  # (B, C, latent frames, height, width)


@pytest.mark.parametrize(
    ("class_name", "stage", "rungs"),
    [
        ("T5EncoderModel", "text_encoding", ["cpu_offload"]),
        ("LTXVideoTransformerBlock", "denoising", ["cpu_offload"]),
        ("LTXVideoMidBlock3d", "decoding", ["vae_tiling"]),
    ],
)
def test_a_job_is_tried_again_and_the_next_one_is_as_in_a_fresh_process(
    runner: JobRunner,
    fresh: str,
    capsys: pytest.CaptureFixture[str],
    class_name: str,
    stage: str,
    rungs: list[str],
) -> None:
    with no_memory(class_name, next_times(1)) as held:
        job = run(runner, LARGE)
    assert f"stage={stage}" in capsys.readouterr().out
    assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, "")
    assert job.receipt["after_out_of_memory"] == rungs
    assert (job.receipt["placement"] == "cpu_offload", job.receipt["vae_tiling"]) == (
        rungs == ["cpu_offload"],
        rungs == ["vae_tiling"],
    )
    gc.collect()
    assert [reference() for reference in held] == [None]
    small = run(runner, SMALL)
    assert small.receipt["placement"] == "resident"
    assert small.outputs[0].sha256 == fresh


def test_a_job_that_ran_out_of_memory_makes_the_same_file_receipt_and_all(
    make_runner: Callable[..., JobRunner],
) -> None:
    runner = make_runner(file_metadata=True)
    plain = run(runner, SMALL)
    with no_memory("LTXVideoTransformer3DModel", next_times(1)):
        again = run(runner, SMALL)
    assert again.receipt["after_out_of_memory"] == ["cpu_offload"]
    assert (plain.receipt["placement"], again.receipt["placement"]) == ("resident", "cpu_offload")
    assert again.outputs[0].sha256 == plain.outputs[0].sha256
    with no_memory("LTXVideoMidBlock3d", next_times(1)):
        tiled = run(runner, SMALL)
    assert tiled.receipt["after_out_of_memory"][-1] == "vae_tiling"
    assert tiled.outputs[0].sha256 != plain.outputs[0].sha256  # its receipt says so


def test_a_vae_that_encodes_a_picture_is_told_to_tile_when_nothing_else_helps(
    runner: JobRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "orange").save(tmp_path / "a.png")
    LocalStorage(tmp_path / "results").put(tmp_path / "a.png", "in/a.png")
    with no_memory("LTXVideoEncoder3d", next_times(3)):
        job = run(runner, replace(SMALL, images=(ImageCondition("in/a.png"),)))
    assert "stage=text_encoding" in capsys.readouterr().out
    assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, "")
    assert job.receipt["after_out_of_memory"] == ["cpu_offload", "group_offload", "vae_tiling"]
    assert job.receipt["vae_tiling"] is True


def test_a_job_that_runs_out_on_every_rung_fails_alone(runner: JobRunner, fresh: str) -> None:
    with no_memory("LTXVideoMidBlock3d", is_large) as held:
        failed = run(runner, LARGE)
        small = run(runner, SMALL)  # while the device is as small as before
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "gpu_out_of_memory")
    assert "25 frames of 64x64 (it ran out at: decoding)" in failed.error_message
    assert len(held) == 4  # resident, tiling, cpu_offload, group_offload
    gc.collect()
    assert [reference() for reference in held] == [None] * 4
    assert small.outputs[0].sha256 == fresh
    assert runner.attempts.fitness.unfit == ""


def test_a_model_that_does_not_fit_is_loaded_with_less(
    runner: JobRunner, fresh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers
    import torch

    to, is_full = diffusers.LTXPipeline.to, next_times(1)

    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_full():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return to(self, *args, **kwargs)

    monkeypatch.setattr(diffusers.LTXPipeline, "to", full)
    small = run(runner, SMALL)
    assert small.receipt["after_out_of_memory"] == ["cpu_offload"]
    assert small.receipt["placement"] == "cpu_offload"
    assert small.outputs[0].sha256 == fresh  # where the weights live changes no pixel
    assert run(runner, SMALL).receipt["placement"] == "cpu_offload"  # not tried in vain again


def test_a_worker_whose_every_step_runs_out_of_memory_is_unfit(runner: JobRunner) -> None:
    with no_memory("LTXVideoTransformer3DModel", lambda *_: True):
        failed = run(runner, LARGE)
    assert failed.error_code == "gpu_out_of_memory"
    assert runner.attempts.fitness.unfit == "the self-check failed with OutOfMemory"


def test_the_test_itself_tells_files_apart(runner: JobRunner, fresh: str) -> None:
    other = run(runner, replace(SMALL, seed=43))
    assert other.outputs[0].sha256 != fresh
    assert len(fresh) == len(hashlib.sha256().hexdigest())
