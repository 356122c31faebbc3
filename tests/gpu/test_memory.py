"""Cancelling a full-size model, and what its jobs leave on the device: nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.loaded import LoadedModel
from models.placement import denoisers
from polyreel.job import JobStatus, VideoJob
from polyreel.queue import Queue
from polyreel.request import VideoRequest
from polyreel.storage.local import LocalStorage
from tests.core.jobs import queued
from tests.gpu.device import SLACK_BYTES, allocated_bytes
from tests.gpu.served import SERVED, SMALL, make_request
from tests.live.decode import decode_zip
from tests.workers import claims
from tests.workers.claims import submit_and_run
from workers.residency import Residency
from workers.runner import JobRunner

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

MakeRunner = Callable[[Residency], JobRunner]


def run(runner: JobRunner, request: VideoRequest) -> VideoJob:
    """Submit and run a job; return it as it ended."""
    [job] = submit_and_run(runner, queued(request))
    return job


def frames(job: VideoJob, folder: Path) -> np.ndarray:
    """Return what a job delivered to the results of `make_runner`, as signed numbers."""
    assert job.status is JobStatus.SUCCEEDED, job.error_message
    return decode_zip(LocalStorage(folder / "results").path(job.outputs[0].key).read_bytes()).astype(int)


@contextmanager
def counting_calls(model: LoadedModel, at_call: int, act: Callable[[], object]) -> Any:
    """Count the calls of a model's denoiser, of which there is one a step without guidance; act in the middle of one.

    Yields:
        A list with an item per call that was begun.
    """
    begun: list[int] = []

    def hook(_module: Any, _args: Any) -> None:
        begun.append(len(begun) + 1)
        if len(begun) == at_call:
            act()

    handle = denoisers(model.pipeline)[0].register_forward_pre_hook(hook)
    try:
        yield begun
    finally:
        handle.remove()


@pytest.mark.parametrize("name", SERVED)
def test_a_job_that_is_cancelled_during_a_step_runs_no_other_and_leaves_nothing_behind(
    residency: Residency, make_runner: MakeRunner, queue: Queue, tmp_path: Path, name: str
) -> None:
    runner = make_runner(residency)
    before = frames(run(runner, make_request(name, SMALL)), tmp_path)
    bytes_before = allocated_bytes()

    job = queue.submit(queued(make_request(name, SMALL, num_inference_steps=8, guidance_scale=1.0))).job
    with counting_calls(residency.get(name), 3, lambda: queue.cancel(job.id)) as steps:
        claims.run(runner)

    assert claims.read(queue, job).status is JobStatus.CANCELLED
    assert steps == [1, 2, 3]
    assert abs(allocated_bytes() - bytes_before) <= SLACK_BYTES
    after = frames(run(runner, make_request(name, SMALL)), tmp_path)
    assert np.abs(after - before).max() <= 2


@pytest.mark.parametrize(
    ("pair", "capacity", "rounds"),
    [
        pytest.param(("wan2.1-1.3b", "ltx"), 2, 10, id="side by side"),
        pytest.param(("wan2.2-5b", "sd15-animatediff"), 2, 3, id="the others side by side"),
        pytest.param(("ltx", "sd15-animatediff"), 1, 3, id="taking turns"),  # each job loads its model anew
    ],
)
def test_alternating_jobs_of_two_models_take_no_more_memory_than_the_first_round(
    make_residency: Callable[..., Residency],
    make_runner: MakeRunner,
    pair: tuple[str, str],
    capacity: int,
    rounds: int,
) -> None:
    residency = make_residency(capacity)
    runner = make_runner(residency)
    after_each = []
    for _ in range(rounds):
        for name in pair:
            job = run(runner, make_request(name, SMALL))
            assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, "")
        after_each.append(allocated_bytes())
    assert len(residency.loaded) == capacity
    assert [growth for size in after_each if abs(growth := size - after_each[0]) > SLACK_BYTES] == []
    for name in residency.loaded:
        residency.unload(name)
