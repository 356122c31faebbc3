"""Makes grey frames at once, and lets a test do something after a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models import Checkpoint, OnProgress, PreparedRequest, Progress, Video
from models.loaded import LoadedModel
from polyreel.entries import Placement, Task


class NoPipeline:
    """Stands where a diffusers pipeline would; has what every loaded model is asked for."""

    def maybe_free_model_hooks(self) -> None:
        pass


def loaded(checkpoint: Checkpoint, device: str, dtype: str, placement: Placement) -> LoadedModel:
    """Return a model without weights."""
    return LoadedModel(NoPipeline(), checkpoint, device=device, dtype=dtype, placement=placement)


class Quick:
    """A family that works.

    Attributes:
        after_step: called with the number of each step once it has been reported.
        steps_done: steps of all jobs together.
        loads: checkpoint folders' names in the order in which they were loaded.
        requests: what `generate` was given, in order.
    """

    name = "quick"

    def __init__(self, after_step: Callable[[int], None] = lambda step: None) -> None:
        self.after_step = after_step
        self.steps_done = 0
        self.loads: list[str] = []
        self.requests: list[PreparedRequest] = []

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        return frozenset({"t2v"})

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        self.loads.append(checkpoint.path.name)
        return loaded(checkpoint, device, dtype, placement)

    def generate(self, model: Any, requests: Sequence[PreparedRequest], on_progress: OnProgress) -> list[Video]:
        self.requests += requests
        steps = requests[0].request.num_inference_steps
        for step in range(1, steps + 1):
            self.steps_done += 1
            on_progress(Progress("denoising", step, steps, 0.9 * step / steps))
            self.after_step(step)
        sizes = [(r.request.num_frames, r.request.delivered_height, r.request.delivered_width) for r in requests]
        seconds = {"text_encoding": 0.01, "denoising": 0.02, "decoding": 0.03}
        return [Video(np.full((*size, 3), 128, np.uint8), seconds=seconds) for size in sizes]
