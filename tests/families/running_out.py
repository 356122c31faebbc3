"""Runs out of memory where a test says so, as a device does that is too small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from models import Checkpoint, OnProgress, PreparedRequest, Video
from models.loaded import LoadedModel
from polyreel.entries import Placement
from polyreel.errors import OutOfMemory
from polyreel.request import VideoRequest
from tests.families.quick import Quick


class OutOfMemoryError(RuntimeError):
    """Called like torch's, which is not imported here."""


class RunningOut(Quick):
    """A family whose device is too small for some jobs.

    Args:
        stage: at which memory runs out; "" is never.
        fits: whether a request (None while loading) has enough memory under a placement; nothing has by default.

    Attributes:
        placements: with which each load was tried, in order: mode, and "+tiling".
    """

    name = "running_out"

    def __init__(
        self, stage: str, fits: Callable[[Placement, VideoRequest | None], bool] = lambda placement, request: False
    ) -> None:
        super().__init__()
        self.stage = stage
        self.fits = fits
        self.placements: list[str] = []

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        self.placements.append(placement.mode + ("+tiling" if placement.vae_tiling else ""))
        self._need_memory("load", placement, None)
        return super().load(checkpoint, device=device, dtype=dtype, placement=placement)

    def generate(self, model: Any, requests: Sequence[PreparedRequest], on_progress: OnProgress) -> list[Video]:
        for stage in ("text_encoding", "denoising", "decoding"):
            self._need_memory(stage, model.placement, requests[0].request)
        return super().generate(model, requests, on_progress)

    def _need_memory(self, stage: str, placement: Placement, request: VideoRequest | None) -> None:
        if stage == self.stage and not self.fits(placement, request):
            raise OutOfMemory("The device ran out of memory.", stage) from OutOfMemoryError("CUDA out of memory.")
