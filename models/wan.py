"""Wan 2.1 and 2.2 text to video, the TI2V layout of 2.2 included.

Checkpoints are folders in diffusers layout whose `model_index.json` says WanPipeline (Wan-AI/Wan2.1-T2V-1.3B-Diffusers,
Wan2.2-T2V-A14B-Diffusers, Wan2.2-TI2V-5B-Diffusers). Frames come as 4k + 1; sizes in multiples of 16, or of 32 for
TI2V, whose VAE compresses twice as much.

Source: Wan, arXiv 2503.20314; https://huggingface.co/docs/diffusers/api/pipelines/wan
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from models import Checkpoint, OnProgress, Pipeline, PreparedRequest, Video
from models._geometry import legal_frames, round_up
from models._load import check_folder, load_model
from models._progress import Meter
from models._run import finish, generators, only_prompt, run_batches, run_pipeline
from models.loaded import LoadedModel
from polyreel.entries import Placement, Task

_CLASSES = frozenset({"WanPipeline"})


class Wan:
    """The Wan family; see `models.Family`."""

    name = "wan"

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        check_folder(checkpoint.path, _CLASSES)
        return frozenset({"t2v"})

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        # Wan's VAE is meant to run in float32; in bfloat16 the frames show blocks and wrong colours.
        return load_model(checkpoint, _CLASSES, device=device, dtype=dtype, placement=placement, float32=("vae",))

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
        vertical, horizontal = self._multiples(pipeline)
        num_frames = legal_frames(request.num_frames, pipeline.vae_scale_factor_temporal)
        frames = run_pipeline(
            model,
            pipeline,
            meter,
            generator=generators(batch),
            scheduler={},
            decoder_calls=(num_frames - 1) // pipeline.vae_scale_factor_temporal + 1,
            prompt=[only_prompt(prepared.request, "Wan") for prepared in batch],
            negative_prompt=[prepared.request.negative_prompt for prepared in batch],
            num_frames=num_frames,
            height=round_up(request.height, vertical),
            width=round_up(request.width, horizontal),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            output_type="np",
        ).frames  # (B, F, H, W, 3), float32, 0..1
        return [Video(finish(video, prepared.request)) for video, prepared in zip(frames, batch, strict=True)]

    def _multiples(self, pipeline: Pipeline) -> tuple[int, int]:
        """Return what height and width are multiples of: one patch of the transformer, seen in pixels.

        The pipeline itself checks for 16 only and floors to the patch in silence: 80 would become 64 for TI2V.
        """
        transformer = pipeline.transformer if pipeline.transformer is not None else pipeline.transformer_2
        _, patch_height, patch_width = transformer.config.patch_size
        scale = pipeline.vae_scale_factor_spatial
        return lcm(16, scale * patch_height), lcm(16, scale * patch_width)


FAMILY = Wan()
