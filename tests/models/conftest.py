"""Tiny checkpoints, built once per session, and requests for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before the first import of huggingface_hub: nothing here may ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from models import Checkpoint, OnProgress, PreparedRequest, Progress, Video, families
from models.tiny import TINY, build
from polyreel.entries import Placement
from polyreel.request import ImageCondition, PromptSpan, VideoRequest

#: Every tiny checkpoint and the family that runs it.
FAMILY_OF = {name: tiny.family for name, tiny in TINY.items()}

#: What every change is tried on: each task and each pipeline of every family. The slow suite tries the others too.
FIRST = {"wan-ti2v", "wan21-i2v", "wan22-i2v", "ltx", "ltx-condition", "ltx2", "animatediff"}


def on_all(cases: Iterable[Any], name_of: Callable[[Any], str] = str) -> list[Any]:
    """Return the cases of a law that holds for every checkpoint; those of checkpoints not in `FIRST` are slow."""
    return [case if name_of(case) in FIRST else pytest.param(case, marks=pytest.mark.slow) for case in cases]


#: What each tiny checkpoint can do; `check` must say the same.
TASKS_OF: dict[str, set[str]] = {
    "wan-ti2v": {"t2v", "i2v", "upscale", "prompt_travel"},
    "wan21": {"t2v", "upscale", "prompt_travel"},
    "wan22-t2v": {"t2v", "upscale", "prompt_travel"},
    "wan21-i2v": {"i2v", "first_last", "upscale", "prompt_travel"},
    "wan22-i2v": {"i2v", "first_last", "upscale", "prompt_travel"},
    "ltx": {"t2v", "i2v", "first_last", "keyframes", "upscale"},
    "ltx-091": {"t2v", "i2v", "upscale"},
    "ltx-condition": {"t2v", "i2v", "first_last", "keyframes", "upscale"},
    "ltx2": {"t2v", "i2v", "first_last", "keyframes", "upscale"},
    "ltx23": {"t2v", "i2v", "first_last", "keyframes", "upscale"},
    "animatediff": {
        *("t2v", "i2v", "first_last", "keyframes", "upscale"),
        *("prompt_travel", "closed_loop", "embeddings", "improved_sampling"),
    },
}


def unwatched(progress: Progress) -> None:
    """Take the progress and do nothing with it."""


def picture(height: int = 48, width: int = 80, seed: int = 7) -> np.ndarray:
    """A smooth RGB picture, uint8 of shape (height, width, 3)."""
    corners = np.random.default_rng(seed).uniform(0, 255, (2, 2, 3))
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top = corners[0, 0] * (1 - columns) + corners[0, 1] * columns
    bottom = corners[1, 0] * (1 - columns) + corners[1, 1] * columns
    return (top * (1 - rows) + bottom * rows).astype(np.uint8)


def with_pictures(request: VideoRequest, *frame_indices: int) -> PreparedRequest:
    """Return a request whose frames of these numbers are to show a picture each."""
    images = tuple(ImageCondition(f"in/{n}.png", index) for n, index in enumerate(frame_indices))
    pictures = tuple(picture(seed=7 + n) for n in range(len(images)))
    return PreparedRequest(replace(request, images=images), images=pictures)


@dataclass
class Loaded:
    """A loaded tiny checkpoint and its family; `generate` is what most tests need."""

    name: str
    folder: Path
    model: Any
    family: Any = field(init=False)

    def __post_init__(self) -> None:
        self.family = families()[FAMILY_OF[self.name]]

    def prepared(self, request: VideoRequest | PreparedRequest) -> PreparedRequest:
        """Return a request as it can run here: a checkpoint that starts from a picture gets one for a bare request."""
        if isinstance(request, PreparedRequest):
            return request
        return PreparedRequest(request) if "t2v" in TASKS_OF[self.name] else with_pictures(request, 0)

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline."""
        return self.model.pipeline

    def videos(
        self, requests: list[VideoRequest | PreparedRequest], on_progress: OnProgress = unwatched
    ) -> list[Video]:
        """Generate in one call."""
        return self.family.generate(self.model, [self.prepared(request) for request in requests], on_progress)

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


@pytest.fixture(scope="session")
def load_once(load: Callable[[str], Loaded]) -> Callable[[str], Loaded]:
    """Load a tiny checkpoint once for all tests: what one test leaves behind, the next one would see."""
    return cache(load)


@pytest.fixture(scope="session", params=on_all(TINY))
def loaded(request: pytest.FixtureRequest, load_once: Callable[[str], Loaded]) -> Loaded:
    """Each tiny checkpoint, loaded once for all tests."""
    return load_once(request.param)


def small_request(prompt: str = "a cat in the rain", num_frames: int = 5, **fields: Any) -> VideoRequest:
    """A request of 64 x 64 px, 5 frames and 2 steps, but for the given fields; `prompt` is for all frames."""
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


@pytest.fixture
def ask() -> Callable[..., VideoRequest]:
    """Make small requests; see `small_request`."""
    return small_request
