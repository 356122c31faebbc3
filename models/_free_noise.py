"""Several prompts and long videos in AnimateDiff: FreeNoise, which slides a window of frames over the video.

Also where each prompt governs and how one passes into the next. Knows no request's other wishes.

Source: FreeNoise, arXiv 2310.15169; https://huggingface.co/docs/diffusers/api/pipelines/animatediff#using-freenoise
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from models import Pipeline
from polyreel.request import VideoRequest

#: Frames that the motion adapters were trained on, and by how many the window moves on.
CONTEXT_LENGTH, CONTEXT_STRIDE = 16, 4

#: Frames before a border in which one prompt fades into the next, at most; a quarter of the span when that is less.
FADE_FRAMES = 2

Tensor = Any  # torch is imported lazily


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
