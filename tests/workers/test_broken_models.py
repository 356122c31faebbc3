"""One broken model is unavailable with the reason, while the other serves; mended, it serves as well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rq.timeouts import JobTimeoutException

from models.tiny import build
from polyreel.catalogue import Catalogue
from polyreel.entries import Part, ServedModel
from polyreel.job import JobStatus, VideoJob
from polyreel.queue import Queue
from polyreel.request import VideoRequest
from polyreel.storage.local import LocalStorage
from tests.core.jobs import REQUEST, queued
from tests.workers.claims import runner_for, submit_and_run
from workers.residency import Residency
from workers.runner import JobRunner

OF_BROKEN = replace(REQUEST, model="broken")


def truncated(folder: Path) -> None:
    [weights] = (folder / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])


def of_another_class(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "StableDiffusionPipeline"}))


def missing(folder: Path) -> None:
    shutil.rmtree(folder)


def without_a_component(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return build("ltx", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def serve(queue: Queue, whole: Path, tmp_path: Path) -> Callable[..., JobRunner]:
    """Return a factory of runners that serve a whole model and a copy of it called "broken"."""
    shutil.copytree(whole, tmp_path / "copy")

    def serve(**fields: Any) -> JobRunner:
        entries = {
            "ltx-tiny": ServedModel(family="ltx", checkpoint=str(whole)),
            "broken": ServedModel(**{"family": "ltx", "checkpoint": str(tmp_path / "copy"), **fields}),
        }
        residency = Residency(Catalogue(entries), tmp_path / "built", "cpu", 2)
        return runner_for(queue, residency, LocalStorage(tmp_path / "results"), tmp_path / "scratch")

    return serve


def run(runner: JobRunner, request: VideoRequest) -> VideoJob:
    [ended] = submit_and_run(runner, queued(request))
    return ended


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, "transformer/diffusion_pytorch_model.safetensors is incomplete or damaged"),
        (of_another_class, "model_index.json says StableDiffusionPipeline"),
        (without_a_component, "vae is missing"),
        (missing, "There is no folder"),
    ],
)
def test_a_damaged_checkpoint_costs_its_own_jobs_alone_until_it_is_mended(
    serve: Callable[..., JobRunner], whole: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(tmp_path / "copy")
    runner = serve()
    state = runner.residency.prepare()
    assert state["ltx-tiny"] == ""
    assert reason in state["broken"]

    failed = run(runner, OF_BROKEN)
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "checkpoint_unavailable")
    assert str(tmp_path) not in failed.error_message
    assert list(runner.attempts.unavailable) == ["broken"]
    assert reason in runner.attempts.unavailable["broken"]
    assert run(runner, REQUEST).status is JobStatus.SUCCEEDED

    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    shutil.copytree(whole, tmp_path / "copy")
    assert run(runner, OF_BROKEN).status is JobStatus.SUCCEEDED
    assert runner.attempts.unavailable == {}


def test_a_missing_part_makes_the_model_unavailable_and_names_it(
    serve: Callable[..., JobRunner], tmp_path: Path
) -> None:
    lora = Part(checkpoint=str(tmp_path / "loras"), file="lcm.safetensors")
    runner = serve(family="animatediff", parts={"lcm_lora": lora})
    state = runner.residency.prepare()
    assert state["ltx-tiny"] == ""
    assert "lcm.safetensors" in state["broken"]
    assert run(runner, OF_BROKEN).error_code == "checkpoint_unavailable"
    assert run(runner, REQUEST).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobTimeoutException("Task exceeded maximum timeout value (1800 seconds)"), "timeout"),
        (RuntimeError("CUDA error: invalid configuration argument"), "checkpoint_unavailable"),
    ],
)
def test_a_model_that_something_else_kept_from_loading_stays_available(
    serve: Callable[..., JobRunner], monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def struck(*args: Any, **kwargs: Any) -> None:
        try:
            raise error
        except Exception as err:  # as the libraries wrap what they meet
            raise OSError("cannot load") from err

    runner = serve()
    with monkeypatch.context() as patch:
        patch.setattr("diffusers.LTXPipeline.from_pretrained", struck)
        assert run(runner, REQUEST).error_code == code
    assert runner.attempts.unavailable == {}
    assert run(runner, REQUEST).status is JobStatus.SUCCEEDED


def test_a_stop_while_a_model_loads_leaves_it_available(
    serve: Callable[..., JobRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        try:
            raise SystemExit
        finally:
            raise RuntimeError("cleaning up failed")

    runner = serve()
    monkeypatch.setattr("diffusers.LTXPipeline.from_pretrained", stopped)
    run(runner, REQUEST)
    assert runner.attempts.unavailable == {}
