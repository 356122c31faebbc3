"""Tiny checkpoints, built once per session, and requests for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before the first import of huggingface_hub: nothing here may ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from models import Checkpoint, OnProgress, PreparedRequest, Progress, Video, families
from models.tiny import TINY, build
from polyreel.entries import Placement
from polyreel.request import PromptSpan, VideoRequest

#: Every tiny checkpoint and the family that runs it.
FAMILY_OF = {name: tiny.family for name, tiny in TINY.items()}


def unwatched(progress: Progress) -> None:
    """Take the progress and do nothing with it."""


@dataclass
class Loaded:
    """A loaded tiny checkpoint and its family; `generate` is what most tests need."""

    name: str
    folder: Path
    model: Any
    family: Any = field(init=False)

    def __post_init__(self) -> None:
        self.family = families()[FAMILY_OF[self.name]]

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline."""
        return self.model.pipeline

    def videos(
        self, requests: list[VideoRequest | PreparedRequest], on_progress: OnProgress = unwatched
    ) -> list[Video]:
        """Generate in one call; a bare request refers to nothing."""
        prepared = [r if isinstance(r, PreparedRequest) else PreparedRequest(r) for r in requests]
        return self.family.generate(self.model, prepared, on_progress)

    def generate(self, request: VideoRequest | PreparedRequest, on_progress: OnProgress = unwatched) -> np.ndarray:
        """Generate one video and return its frames."""
        [video] = self.videos([request], on_progress)
        return video.frames


def load_tiny(name: str, folder: Path, *, dtype: str = "float32", **checkpoint: Any) -> Loaded:
    """Load a tiny checkpoint anew; keywords are fields of `Checkpoint`."""
    what = Checkpoint(folder, name=f"tiny:{name}", **checkpoint)
    model = families()[FAMILY_OF[name]].load(what, device="cpu", dtype=dtype, placement=Placement(mode="resident"))
    return Loaded(name, folder, model)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models on several threads of a busy machine are slow at random, and results depend on the number."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def load(tiny_root: Path) -> Callable[[str], Loaded]:
    """Load a tiny checkpoint, each time anew."""

    def load(name: str) -> Loaded:
        return load_tiny(name, build(name, tiny_root))

    return load


@pytest.fixture(scope="session", params=list(TINY))
def loaded(request: pytest.FixtureRequest, load: Callable[[str], Loaded]) -> Loaded:
    """Each tiny checkpoint, loaded once for all tests: what one test leaves behind, the next one would see."""
    return load(request.param)


@pytest.fixture
def ask() -> Callable[..., VideoRequest]:
    """Make a request of 64 x 64 px, 5 frames and 2 steps, but for the given fields; `prompt` is for all frames."""

    def ask(prompt: str = "a cat in the rain", num_frames: int = 5, **fields: Any) -> VideoRequest:
        base = VideoRequest(
            model="tiny",
            prompts=(PromptSpan(prompt, num_frames),),
            height=64,
            width=64,
            fps=8.0,
            num_inference_steps=2,
            guidance_scale=4.0,
            seed=1,
            outputs=(),
        )
        return replace(base, **fields)

    return ask
