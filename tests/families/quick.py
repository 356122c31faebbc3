"""Makes grey frames at once, and lets a test do something after a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from models import Pipeline, StepCallback
from polyreel.request import VideoRequest


class Quick:
    """A family that works.

    Attributes:
        after_step: called with the number of each step once it has been reported.
        steps_done: steps of all jobs together.
        loads: checkpoint folders' names in the order in which they were loaded.
    """

    name = "quick"

    def __init__(self, after_step: Callable[[int], None] = lambda step: None) -> None:
        self.after_step = after_step
        self.steps_done = 0
        self.loads: list[str] = []

    def check(self, checkpoint: Path) -> None:
        pass

    def load(self, checkpoint: Path, *, device: str, dtype: str) -> Pipeline:
        self.loads.append(checkpoint.name)
        return object()

    def generate(self, pipeline: Pipeline, requests: Sequence[VideoRequest], on_step: StepCallback) -> list[np.ndarray]:
        for step in range(1, requests[0].num_inference_steps + 1):
            self.steps_done += 1
            on_step(step, requests[0].num_inference_steps)
            self.after_step(step)
        return [np.full((r.num_frames, r.height, r.width, 3), 128, np.uint8) for r in requests]
