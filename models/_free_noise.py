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
from models._closed_loop import closed_stride, fading_back
from models._windows import windowed
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
def free_noise(pipeline: Pipeline, num_frames: int, *, closed_from: int | None = None) -> Iterator[None]:
    """Run with FreeNoise, and leave the pipeline without it whatever happens: it is a state of the pipeline.

    diffusers' part is the noise and the prompts of the spans; the windows are ours, see `models._windows`.

    Args:
        num_frames: of the video.
        closed_from: the frame in which the last prompt of a closed loop begins; None for an open video.
    """
    closed = closed_from is not None
    length = min(CONTEXT_LENGTH, num_frames, pipeline.unet.config.motion_max_seq_length)
    stride = closed_stride(length, CONTEXT_STRIDE) if closed else CONTEXT_STRIDE
    # What `enable_free_noise` sets, without its copies of the motion modules.
    pipeline._free_noise_context_length = length
    pipeline._free_noise_context_stride = CONTEXT_STRIDE
    pipeline._free_noise_noise_type = "shuffle_context"
    pipeline._free_noise_prompt_interpolation_callback = (
        fading_back(hold_then_fade, closed_from, num_frames) if closed_from is not None else hold_then_fade
    )
    try:
        with windowed(pipeline, num_frames, length, stride, closed=closed):
            yield
    finally:
        pipeline._free_noise_context_length = None
