"""Raises in the middle of a generation, as a pipeline does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models import OnProgress, PreparedRequest, Progress, Video
from polyreel.errors import GenerationFailed
from tests.families.quick import Quick


class Raising(Quick):
    """A family that raises `error` after its first step; `wrapped` chains it to a `GenerationFailed` as ours do."""

    name = "raising"

    def __init__(self, error: BaseException, *, wrapped: bool = False) -> None:
        super().__init__()
        self.error = error
        self.wrapped = wrapped

    def generate(self, model: Any, requests: Sequence[PreparedRequest], on_progress: OnProgress) -> list[Video]:
        on_progress(Progress("denoising", 1, requests[0].request.num_inference_steps, 0.1))
        if self.wrapped:
            raise GenerationFailed("The pipeline failed.") from self.error
        raise self.error
