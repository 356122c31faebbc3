"""A worker that loads, runs and drops models all day takes no more memory than after its first rounds."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

# Before the first import of huggingface_hub: nothing here may ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from models import PreparedRequest, Progress
from polyreel.catalogue import Catalogue
from polyreel.entries import ServedModel
from polyreel.errors import Cancelled, GenerationFailed
from polyreel.request import PromptSpan, VideoRequest
from workers.residency import Residency

#: Catalogue name to tiny checkpoint and family.
MODELS = {"wan": "wan-ti2v", "ltx": "ltx", "animatediff": "animatediff"}

#: Bytes by which resident memory may wander without a leak; 0.4 MB were seen over ten rounds. A round that leaves its
#: three models behind grows by 11 MB.
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


def run_round(residency: Residency, alive: list[weakref.ref]) -> None:
    """Give every model a job that is cancelled, one that fails and one that succeeds."""
    for name in MODELS:
        model = residency.get(name)
        alive.append(weakref.ref(model))
        family = residency.family(name)
        endings = [(Cancelled("stop"), "denoising"), (Cancelled("stop"), "decoding"), (Broken("oh"), "denoising")]
        for error, stage in endings:
            with pytest.raises((Cancelled, GenerationFailed)):
                family.generate(model, [request(name)], stop(error, stage))
        [video] = family.generate(model, [request(name)], lambda progress: None)
        assert video.frames.shape == (5, 64, 64, 3)


def resident_bytes() -> int:
    """Return this process's resident memory, without what the allocator keeps for later."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


@pytest.fixture
def residency(tmp_path: Path) -> Residency:
    """Three models where two may stay: with each round every one of them is dropped and loaded again."""
    import torch

    torch.set_num_threads(1)
    entries = {name: ServedModel(family=name, checkpoint=f"tiny:{tiny}") for name, tiny in MODELS.items()}
    return Residency(Catalogue(entries), tmp_path, "cpu", 2)


def growth(residency: Residency, alive: list[weakref.ref], *, warm_up: int, rounds: int) -> int:
    for _ in range(warm_up):
        run_round(residency, alive)
    before = resident_bytes()
    for _ in range(rounds):
        run_round(residency, alive)
    return resident_bytes() - before


def test_memory_does_not_grow_while_models_come_and_go(residency: Residency) -> None:
    alive: list[weakref.ref] = []
    # The first rounds fill what stays: imports, kernels, the allocator's arenas.
    assert growth(residency, alive, warm_up=2, rounds=5) < NOISE
    assert len(alive) == 21
    assert sum(model() is not None for model in alive) == 2


def test_a_leak_would_be_seen(residency: Residency, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    get = residency.get
    monkeypatch.setattr(residency, "get", lambda name: (kept.append(get(name)), kept[-1])[1])
    alive: list[weakref.ref] = []
    assert growth(residency, alive, warm_up=1, rounds=2) > 2 * NOISE
    assert sum(model() is not None for model in alive) == 9
