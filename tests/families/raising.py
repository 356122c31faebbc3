"""Raises in the middle of a generation, as a pipeline does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models import Pipeline, StepCallback
from polyreel.errors import GenerationFailed
from polyreel.request import VideoRequest


class Raising:
    """A family that raises `error` after its first step; `wrapped` chains it to a `GenerationFailed` as ours do."""

    name = "raising"

    def __init__(self, error: BaseException, *, wrapped: bool = False) -> None:
        self.error = error
        self.wrapped = wrapped

    def check(self, checkpoint: Path) -> None:
        pass

    def load(self, checkpoint: Path, *, device: str, dtype: str) -> Pipeline:
        return object()

    def generate(self, pipeline: Pipeline, requests: Sequence[VideoRequest], on_step: StepCallback) -> list[np.ndarray]:
        on_step(1, requests[0].num_inference_steps)
        if self.wrapped:
            raise GenerationFailed("The pipeline failed.") from self.error
        raise self.error
