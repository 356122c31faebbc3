"""Wan 2.1 and 2.2 text to video, the TI2V layout of 2.2 included.

Checkpoints are folders in diffusers layout whose `model_index.json` says WanPipeline (Wan-AI/Wan2.1-T2V-1.3B-Diffusers,
Wan2.2-T2V-A14B-Diffusers, Wan2.2-TI2V-5B-Diffusers). Frames come as 4k + 1; sizes in multiples of 16, or of 32 for
TI2V, whose VAE compresses twice as much.

Source: Wan, arXiv 2503.20314; https://huggingface.co/docs/diffusers/api/pipelines/wan
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


class Wan:
    """The Wan family; see `models.Family`. Several requests run one after the other."""

    name = "wan"
    _pipeline_class = "WanPipeline"

    def check(self, checkpoint: Path) -> None:
        check_checkpoint(checkpoint, self._pipeline_class)

    def load(self, checkpoint: Path, *, device: str, dtype: str) -> Pipeline:
        # Wan's VAE is meant to run in float32; in bfloat16 the frames show blocks and wrong colours.
        return load_pipeline(checkpoint, self._pipeline_class, device=device, dtype=dtype, float32=("vae",))

    def generate(self, pipeline: Pipeline, requests: Sequence[VideoRequest], on_step: StepCallback) -> list[np.ndarray]:
        return run_each(requests, on_step, lambda request, report: self._generate(pipeline, request, report))

    def _generate(self, pipeline: Pipeline, request: VideoRequest, on_step: StepCallback) -> np.ndarray:
        vertical, horizontal = self._multiples(pipeline)
        return run_pipeline(
            pipeline,
            request,
            on_step,
            prompt=only_prompt(request, "Wan"),
            negative_prompt=request.negative_prompt,
            num_frames=legal_frames(request.num_frames, pipeline.vae_scale_factor_temporal),
            height=round_up(request.height, vertical),
            width=round_up(request.width, horizontal),
        )

    def _multiples(self, pipeline: Pipeline) -> tuple[int, int]:
        """Return what height and width are multiples of: one patch of the transformer, seen in pixels.

        The pipeline itself checks for 16 only and floors to the patch in silence: 80 would become 64 for TI2V.
        """
        transformer = pipeline.transformer if pipeline.transformer is not None else pipeline.transformer_2
        _, patch_height, patch_width = transformer.config.patch_size
        scale = pipeline.vae_scale_factor_spatial
        return lcm(16, scale * patch_height), lcm(16, scale * patch_width)


FAMILY = Wan()
