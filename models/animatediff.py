"""AnimateDiff: Stable Diffusion 1.5 with a motion adapter; the family that takes several prompts in one video.

Checkpoints are folders in diffusers layout whose `model_index.json` says AnimateDiffPipeline. Any number of frames,
sizes in multiples of 8. One prompt and no more frames than the motion adapter knows run plainly; everything else
runs under FreeNoise, which slides a window of 16 frames over the video.

Sources: AnimateDiff, arXiv 2307.04725; FreeNoise, arXiv 2310.15169;
https://huggingface.co/docs/diffusers/api/pipelines/animatediff
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from models import Checkpoint, OnProgress, Pipeline, PreparedRequest, Video
from models._geometry import round_up
from models._load import check_folder, load_model
from models._progress import Meter
from models._run import finish, generators, run_batches, run_pipeline
from models.loaded import LoadedModel
from polyreel.entries import Placement, Task
from polyreel.request import VideoRequest

_CLASSES = frozenset({"AnimateDiffPipeline"})

#: Frames that the motion adapters were trained on, and by how many the window moves on.
CONTEXT_LENGTH, CONTEXT_STRIDE = 16, 4

#: Frames before a border in which one prompt fades into the next, at most; a quarter of the span when that is less.
FADE_FRAMES = 2

Tensor = Any  # torch is imported lazily


class AnimateDiff:
    """The AnimateDiff family; see `models.Family`."""

    name = "animatediff"

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        check_folder(checkpoint.path, _CLASSES)
        return frozenset({"t2v", "prompt_travel"})

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        return load_model(checkpoint, _CLASSES, device=device, dtype=dtype, placement=placement, prepare=mend_clip_skip)

    def generate(self, model: LoadedModel, requests: Sequence[PreparedRequest], on_progress: OnProgress) -> list[Video]:
        return run_batches(
            model,
            requests,
            on_progress,
            steps=lambda request: request.num_inference_steps,
            run=lambda batch, meter: self._generate(model, batch, meter),
            # diffusers takes one prompt or a dict of prompts under FreeNoise, no list.
            runs_alone=lambda request: self._needs_free_noise(model, request),
        )

    def _generate(self, model: LoadedModel, batch: list[PreparedRequest], meter: Meter) -> list[Video]:
        request = batch[0].request
        if self._needs_free_noise(model, request):
            with free_noise(model.pipeline, request.num_frames):
                return self._run(model, batch, meter, prompt=prompts_by_frame(request))
        return self._run(model, batch, meter, prompt=[p.request.prompts[0].prompt for p in batch])

    def _run(self, model: LoadedModel, batch: list[PreparedRequest], meter: Meter, *, prompt: Any) -> list[Video]:
        pipeline, request = model.pipeline, batch[0].request
        negative = [prepared.request.negative_prompt for prepared in batch]
        frames = run_pipeline(
            model,
            pipeline,
            meter,
            generator=generators(batch),
            scheduler={},
            prompt=prompt,
            negative_prompt=negative[0] if isinstance(prompt, dict) else negative,
            num_frames=request.num_frames,
            height=round_up(request.height, pipeline.vae_scale_factor),
            width=round_up(request.width, pipeline.vae_scale_factor),
            clip_skip=self._clip_skip(pipeline, request),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            output_type="np",
        ).frames  # (B, F, H, W, 3), float32, 0..1
        return [Video(finish(video, prepared.request)) for video, prepared in zip(frames, batch, strict=True)]

    def _needs_free_noise(self, model: LoadedModel, request: VideoRequest) -> bool:
        longest: int = model.pipeline.unet.config.motion_max_seq_length
        return len(request.prompts) > 1 or request.num_frames > longest

    def _clip_skip(self, pipeline: Pipeline, request: VideoRequest) -> int | None:
        """Return the layers to skip: n of 12 stops at layer 12 - n; all 12 leaves the embeddings of the tokens."""
        if request.clip_skip is None:
            return None
        layers: int = pipeline.text_encoder.config.num_hidden_layers
        return min(request.clip_skip, layers)


def mend_clip_skip(pipeline: Pipeline) -> None:
    """Let diffusers find the layers of the text encoder, for `clip_skip`.

    transformers 5.6 dissolved CLIPTextModel.text_model into CLIPTextModel; diffusers 0.42 still asks for it.
    """
    if not hasattr(pipeline.text_encoder, "text_model"):
        # Set past torch's __setattr__: as a submodule it would contain itself.
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)


def prompts_by_frame(request: VideoRequest) -> dict[int, str]:
    """Return each prompt by the first frame that it governs, counted from 0."""
    starts = accumulate((span.num_frames for span in request.prompts), initial=0)
    return {start: span.prompt for start, span in zip(starts, request.prompts, strict=False)}


def hold_then_fade(start_frame: int, end_frame: int, start_tensor: Tensor, end_tensor: Tensor) -> Tensor:
    """Hold a prompt over its span and fade into the next one just before the border.

    The default of diffusers moves from one prompt to the next over the whole span, so that a prompt is only seen
    pure in its first frame.

    Args:
        start_frame, end_frame: first frame of this span and of the next one; both are in the answer.
        start_tensor, end_tensor: embeddings of the two prompts, (1, tokens, channels).

    Returns:
        (end_frame - start_frame + 1, tokens, channels).
    """
    import torch

    length = end_frame - start_frame
    fade = min(FADE_FRAMES, length // 4)
    share = [max(0.0, 1 - (length - frame) / (fade + 1)) for frame in range(length + 1)]  # of the next prompt
    weights = torch.tensor(share, dtype=start_tensor.dtype, device=start_tensor.device)[:, None, None]
    return (1 - weights) * start_tensor + weights * end_tensor  # (length + 1, tokens, channels)


@contextmanager
def free_noise(pipeline: Pipeline, num_frames: int) -> Iterator[None]:
    """Run with FreeNoise, and leave the pipeline without it whatever happens: it is a state of the pipeline."""
    window = min(CONTEXT_LENGTH, num_frames, pipeline.unet.config.motion_max_seq_length)
    modules = [
        module for block in _blocks(pipeline) if hasattr(block, "motion_modules") for module in block.motion_modules
    ]
    # FreeNoise replaces these by copies that know about windows; the originals come back as they were. The
    # pipeline's own disable_free_noise() makes copies again, and fails on adapters without a motion mid block.
    originals = [list(module.transformer_blocks) for module in modules]
    try:
        pipeline.enable_free_noise(
            context_length=window, context_stride=CONTEXT_STRIDE, prompt_interpolation_callback=hold_then_fade
        )
        pipeline.unet.eval()  # the copies are made in training mode
        yield
    finally:
        pipeline._free_noise_context_length = None
        for module, blocks in zip(modules, originals, strict=True):
            for position, block in enumerate(blocks):
                module.transformer_blocks[position] = block


def _blocks(pipeline: Pipeline) -> list[Any]:
    return [*pipeline.unet.down_blocks, pipeline.unet.mid_block, *pipeline.unet.up_blocks]


FAMILY = AnimateDiff()
