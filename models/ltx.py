"""LTX-Video: text to video at 24 to 30 frames per second, on sizes in multiples of 32.

Checkpoints are folders in diffusers layout whose `model_index.json` says LTXPipeline (Lightricks/LTX-Video).

Source: LTX-Video, arXiv 2501.00103; https://huggingface.co/docs/diffusers/api/pipelines/ltx_video
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from pathlib import Path

import numpy as np

from models import Pipeline, StepCallback
from models._geometry import legal_frames, round_up
from models._pipeline import check_checkpoint, load_pipeline, only_prompt, run_each, run_pipeline
from polyreel.request import VideoRequest


class LTX:
    """The LTX family; see `models.Family`. Several requests run one after the other."""

    name = "ltx"
    _pipeline_class = "LTXPipeline"

    def check(self, checkpoint: Path) -> None:
        check_checkpoint(checkpoint, self._pipeline_class)

    def load(self, checkpoint: Path, *, device: str, dtype: str) -> Pipeline:
        return load_pipeline(checkpoint, self._pipeline_class, device=device, dtype=dtype)

    def generate(self, pipeline: Pipeline, requests: Sequence[VideoRequest], on_step: StepCallback) -> list[np.ndarray]:
        return run_each(requests, on_step, lambda request, report: self._generate(pipeline, request, report))

    def _generate(self, pipeline: Pipeline, request: VideoRequest, on_step: StepCallback) -> np.ndarray:
        # The pipeline insists on 32 px, whatever its VAE does.
        multiple = lcm(32, pipeline.vae_spatial_compression_ratio)
        return run_pipeline(
            pipeline,
            request,
            on_step,
            scheduler_changes=self._scheduler_changes(pipeline, request),
            prompt=only_prompt(request, "LTX"),
            negative_prompt=request.negative_prompt,
            num_frames=legal_frames(request.num_frames, pipeline.vae_temporal_compression_ratio),
            height=round_up(request.height, multiple),
            width=round_up(request.width, multiple),
            # For VAEs that know the noise level (0.9.1 and later; others ignore both): the values in the model card.
            decode_timestep=0.03,
            decode_noise_scale=0.025,
            frame_rate=request.fps,  # a conditioning input: the model moves things at this rate
        )

    def _scheduler_changes(self, pipeline: Pipeline, request: VideoRequest) -> dict[str, None]:
        # A single step starts at sigma 1 and ends at 0. Stretching the schedule so that its last entry is
        # `shift_terminal` divides 0 by 0 then, and the pipeline fails with an IndexError on the NaN.
        one_step = request.num_inference_steps == 1 and pipeline.scheduler.config.get("shift_terminal")
        return {"shift_terminal": None} if one_step else {}


FAMILY = LTX()
