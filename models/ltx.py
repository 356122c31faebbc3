"""LTX-Video: text to video at 24 to 30 frames per second, on sizes in multiples of 32.

Checkpoints are folders in diffusers layout whose `model_index.json` says LTXPipeline (Lightricks/LTX-Video).

Source: LTX-Video, arXiv 2501.00103; https://huggingface.co/docs/diffusers/api/pipelines/ltx_video
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

from models import Checkpoint, OnProgress, Pipeline, PreparedRequest, Video
from models._geometry import legal_frames, round_up
from models._load import check_folder, load_model
from models._progress import Meter
from models._run import finish, generators, only_prompt, run_batches, run_pipeline
from models.loaded import LoadedModel
from polyreel.entries import Placement, Task
from polyreel.request import VideoRequest

_CLASSES = frozenset({"LTXPipeline"})


class LTX:
    """The LTX family; see `models.Family`."""

    name = "ltx"

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        check_folder(checkpoint.path, _CLASSES)
        return frozenset({"t2v"})

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        return load_model(checkpoint, _CLASSES, device=device, dtype=dtype, placement=placement)

    def generate(self, model: LoadedModel, requests: Sequence[PreparedRequest], on_progress: OnProgress) -> list[Video]:
        return run_batches(
            model,
            requests,
            on_progress,
            steps=lambda request: request.num_inference_steps,
            run=lambda batch, meter: self._generate(model, batch, meter),
        )

    def _generate(self, model: LoadedModel, batch: list[PreparedRequest], meter: Meter) -> list[Video]:
        pipeline, request = model.pipeline, batch[0].request
        # The pipeline insists on 32 px, whatever its VAE does.
        multiple = lcm(32, pipeline.vae_spatial_compression_ratio)
        frames = run_pipeline(
            model,
            pipeline,
            meter,
            generator=generators(batch),
            scheduler=self._scheduler_changes(pipeline, request),
            prompt=[only_prompt(prepared.request, "LTX") for prepared in batch],
            negative_prompt=[prepared.request.negative_prompt for prepared in batch],
            num_frames=legal_frames(request.num_frames, pipeline.vae_temporal_compression_ratio),
            height=round_up(request.height, multiple),
            width=round_up(request.width, multiple),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            # For VAEs that know the noise level (0.9.1 and later; others ignore both): the values in the model card.
            decode_timestep=0.03,
            decode_noise_scale=0.025,
            frame_rate=request.fps,  # a conditioning input: the model moves things at this rate
            output_type="np",
        ).frames  # (B, F, H, W, 3), float32, 0..1
        return [Video(finish(video, prepared.request)) for video, prepared in zip(frames, batch, strict=True)]

    def _scheduler_changes(self, pipeline: Pipeline, request: VideoRequest) -> dict[str, Any]:
        # A single step starts at sigma 1 and ends at 0. Stretching the schedule so that its last entry is
        # `shift_terminal` divides 0 by 0 then, and the pipeline fails with an IndexError on the NaN.
        one_step = request.num_inference_steps == 1 and pipeline.scheduler.config.get("shift_terminal")
        return {"shift_terminal": None} if one_step else {}


FAMILY = LTX()
