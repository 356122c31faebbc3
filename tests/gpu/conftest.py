"""Full-size models on CUDA, with random weights: `make test-gpu`, skipped where there is no CUDA.

POLYREEL_GPU_TESTS_ON_CPU=1 runs the same tests with tiny checkpoints on the CPU, in a minute or two.
POLYREEL_GPU_REPORT=FILE writes the tables that are printed at the end to a file as well.

None of this has ever run on CUDA: no GPU was at hand when it was written. What has run is the switch above, and the
counting of FLOP on the meta device. So never run were: making the published checkpoints on the device (on the CPU only
with fewer layers), every figure of time or memory, `_native_cudnn`, fp8 and the offload modes between two devices, and
all tolerances for bfloat16, which are guesses until then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before the first import of huggingface_hub: nothing here may ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import workers.residency
from models import Family, families
from models.loaded import LoadedModel
from polyreel.entries import Placement
from polyreel.queue import Queue
from polyreel.storage.local import LocalStorage
from tests.gpu import device
from tests.gpu.checkpoints import Built
from tests.gpu.report import Report
from tests.gpu.served import SERVED, make_catalogue
from tests.workers.claims import runner_for
from workers.residency import Residency
from workers.runner import JobRunner

_REPORT = Report()


@pytest.fixture(scope="session", autouse=True)
def _needs_cuda() -> None:
    import torch

    if device.ON_CPU:
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        pytest.skip("needs CUDA, and torch sees none (POLYREEL_GPU_TESTS_ON_CPU=1 runs these on the CPU, tiny)")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured."""
    if _REPORT:
        text = _REPORT.markdown(device.name())
        terminalreporter.section("figures")
        terminalreporter.write_line(text)
        if device.REPORT:
            device.REPORT.write_text(text + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def report() -> Report:
    """Where figures go."""
    return _REPORT


@pytest.fixture(scope="session")
def served_families() -> dict[str, Family]:
    """The real families; on the GPU they make their checkpoints instead of reading them."""
    if device.ON_CPU:
        return families()
    tasks = {name: frozenset({"t2v"}) for name in families()}
    for served in SERVED.values():
        tasks[served.family] |= set(served.tasks)
    return {name: Built(family, tasks[name]) for name, family in families().items()}


@pytest.fixture(scope="module")
def make_residency(
    served_families: dict[str, Family], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Residency]]:
    """Return a factory of residencies, which are emptied when the module's tests are done.

    Arguments: `capacity`, how many models stay in memory; others are fields of every entry, such as `attention`.
    """
    folder, made = tmp_path_factory.mktemp("checkpoints"), []

    def make(capacity: int = len(SERVED), **fields: Any) -> Residency:
        made.append(Residency(make_catalogue(folder, **fields), folder / "built", device.DEVICE, capacity))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.residency, "families", lambda: served_families)
        yield make
        for residency in made:
            for name in residency.loaded:
                residency.unload(name)


@pytest.fixture(scope="module")
def residency(make_residency: Callable[..., Residency]) -> Residency:
    """One that keeps every model, for all tests of a module."""
    return make_residency()


@pytest.fixture
def load(make_residency: Callable[..., Residency]) -> Iterator[Callable[..., LoadedModel]]:
    """Return a loader of models, of which the last one alone is on the device.

    Arguments: catalogue name, `placement`, and fields of the entry.
    """
    used: list[tuple[Residency, str]] = []

    def load(name: str, placement: Placement | None = None, **fields: Any) -> LoadedModel:
        unload()
        residency = make_residency(1, **fields)
        used.append((residency, name))
        return residency.get(name, placement or Placement(mode="resident"))

    def unload() -> None:
        while used:
            residency, name = used.pop()
            residency.unload(name)

    yield load
    unload()


@pytest.fixture
def queue(redis_url: str) -> Queue:
    return Queue(redis_url, retention_s=3600, max_open=100, job_timeout_s=3600, patient=True)


@pytest.fixture
def make_runner(queue: Queue, tmp_path: Path) -> Callable[[Residency], JobRunner]:
    """Return a factory of workers; their files go where the API of `make_api` looks for them."""

    def make(residency: Residency) -> JobRunner:
        return runner_for(queue, residency, LocalStorage(tmp_path / "results"), tmp_path / "scratch", "gpu-test")

    return make
