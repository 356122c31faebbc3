"""A worker that loads, runs and drops models all day takes no more memory than after its first rounds."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest

# Before the first import of huggingface_hub: nothing here may ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from models import PreparedRequest, Progress
from models.loaded import LoadedModel
from polyreel.catalogue import Catalogue
from polyreel.entries import ServedModel
from polyreel.errors import Cancelled, GenerationFailed
from polyreel.request import PromptSpan, VideoRequest
from workers.residency import Residency

#: Catalogue name to tiny checkpoint and family.
MODELS = {"wan": "wan-ti2v", "ltx": "ltx", "animatediff": "animatediff"}

#: Bytes by which resident memory may wander without a leak; less than 1 MB was seen. A round that leaves its
#: three models behind grows by about 10 MB.
NOISE = 6_000_000


class Broken(Exception):
    """Stands for whatever a pipeline may raise."""


def request(model: str) -> PreparedRequest:
    return PreparedRequest(
        VideoRequest(
            model=model,
            prompts=(PromptSpan("a cat in the rain", 5),),
            height=64,
            width=64,
            fps=8.0,
            num_inference_steps=2,
            guidance_scale=4.0,
            seed=1,
            outputs=(),
        )
    )


def stop(error: Exception, stage: str):
    def on_progress(progress: Progress) -> None:
        if progress.stage == stage and progress.step > 0:
            raise error

    return on_progress


def run_round(residency: Residency) -> Iterator[LoadedModel]:
    """Give every model a job that is cancelled, one that fails and one that succeeds; yield each."""
    for name in MODELS:
        model = residency.get(name)
        family = residency.family(name)
        endings = [(Cancelled("stop"), "denoising"), (Cancelled("stop"), "decoding"), (Broken("oh"), "denoising")]
        for error, stage in endings:
            with pytest.raises((Cancelled, GenerationFailed)):
                family.generate(model, [request(name)], stop(error, stage))
        [video] = family.generate(model, [request(name)], lambda progress: None)
        assert video.frames.shape == (5, 64, 64, 3)
        yield model
        del model, video


def resident_bytes() -> int:
    """Return this process's resident memory, without what the allocator keeps for later."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def measure(folder: Path, *, warm_up: int, rounds: int, leaking: bool = False) -> tuple[int, list[bool]]:
    """Return by how much memory grew over `rounds`, and for every load whether the model is still there.

    There are three models where two may stay: with each round every one of them is dropped and loaded again.

    Args:
        leaking: keep every model, as a bug would.
    """
    import torch

    torch.set_num_threads(1)
    entries = {name: ServedModel(family=name, checkpoint=f"tiny:{tiny}") for name, tiny in MODELS.items()}
    residency = Residency(Catalogue(entries), folder, "cpu", 2)
    kept: list[LoadedModel] = []
    alive: list[weakref.ref[LoadedModel]] = []

    def run(count: int) -> None:
        for _ in range(count):
            for model in run_round(residency):
                alive.append(weakref.ref(model))
                if leaking:
                    kept.append(model)

    run(warm_up)
    before = resident_bytes()
    run(rounds)
    grown = resident_bytes() - before
    return grown, [model() is not None for model in alive]


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., tuple[int, list[bool]]]:
    """Call `measure` in a process of its own: in this one, a leak would fit into the holes that other tests left."""

    def measured(**arguments: Any) -> tuple[int, list[bool]]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(measure, tmp_path, **arguments).result()

    return measured


@pytest.mark.slow
def test_memory_does_not_grow_while_models_come_and_go(measured) -> None:
    # The first rounds fill what stays: imports, kernels, the allocator's arenas.
    grown, alive = measured(warm_up=2, rounds=5)
    assert grown < NOISE
    assert (len(alive), sum(alive)) == (21, 2)


@pytest.mark.slow
def test_a_leak_would_be_seen(measured) -> None:
    grown, alive = measured(warm_up=1, rounds=2, leaking=True)
    assert grown > 1.5 * NOISE
    assert (len(alive), sum(alive)) == (9, 9)
