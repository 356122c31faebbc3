"""Motion modules that look at a video through windows, so that it may be longer than they know, or closed to a loop.

A window of frames slides over the video in every motion module at every step, and where windows overlap their answers
are mixed, nearest to the middle of a window most. In a loop the windows also go over the end: one that starts two
frames before it sees those two and then the first ones, so the last and the first frame are neighbours like any other
two. Positions are counted within a window, which is why the modules do not notice either.

diffusers' FreeNoise does the same for open videos with copies of the modules. Not so here, for three reasons: it
divides the last frames by too much where the windows do not fit (diffusers 0.42.1: 19 frames damp the last one to a
third in every module), it cannot copy modules that have a LoRA on them, and it knows no loops.

Source: FreeNoise, arXiv 2310.15169, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from models import Pipeline

Tensor = Any  # torch is imported lazily


def window_starts(num_frames: int, length: int, stride: int, *, closed: bool) -> list[int]:
    """Return the first frame of each window.

    Args:
        num_frames: of the video, at least `length`.
        length: frames of a window.
        stride: frames from one window to the next, 1..`length`.
        closed: windows start all over the video and go on with its first frames after the last one.
    """
    if closed:
        # As even as frames allow, and none where the video starts: steps between frames are a little larger where a
        # window begins (by a seventh, measured on motion modules that smooth), and the loop closes between two such.
        count = -(-num_frames // stride)
        return [number * num_frames // count + stride // 2 for number in range(count)]
    last = num_frames - length
    starts = list(range(0, last + 1, stride))
    return starts if starts[-1] == last else [*starts, last]


def pyramid(length: int) -> list[int]:
    """Return the weights of a window's frames: 1 2 3 3 2 1 for 6, 1 2 3 2 1 for 5."""
    return [min(position, length - 1 - position) + 1 for position in range(length)]


@contextmanager
def windowed(pipeline: Pipeline, num_frames: int, length: int, stride: int, *, closed: bool = False) -> Iterator[None]:
    """Let the motion modules of a pipeline's UNet look through windows; afterwards they are as they were.

    Args:
        num_frames, length, stride, closed: see `window_starts`.
    """
    import torch

    starts = window_starts(num_frames, length, stride, closed=closed)
    frames = (torch.tensor(starts)[:, None] + torch.arange(length)) % num_frames  # (windows, length)
    weights = torch.tensor(pyramid(length), dtype=torch.float32).repeat(len(starts), 1)  # (windows, length)
    totals = torch.zeros(num_frames).index_add_(0, frames.flatten(), weights.flatten())  # (num_frames,)
    weights = weights / totals[frames]  # each frame's weights add up to 1

    blocks = motion_blocks(pipeline)
    own = [block.__dict__.get("forward") for block in blocks]  # an offload hook's, mostly none
    try:
        for block in blocks:
            block.forward = partial(_forward, block, frames, weights)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is not None:
                block.forward = forward
            else:
                block.__dict__.pop("forward", None)


def motion_blocks(pipeline: Pipeline) -> list[Any]:
    """Return the transformer blocks of all motion modules; the middle of the UNet has none in some adapters."""
    unet = pipeline.unet
    return [
        block
        for part in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
        for module in getattr(part, "motion_modules", ())
        for block in module.transformer_blocks
    ]


def _forward(block: Any, frames: Tensor, weights: Tensor, hidden_states: Tensor, **_unused: Any) -> Tensor:
    """Do what the block's own forward does, with attention in windows.

    Args:
        block: diffusers' BasicTransformerBlock of a motion module: two self-attentions over time and a feed-forward.
        frames: indices, (windows, length).
        weights: of each window's answer for each of its frames, (windows, length).
        hidden_states: (B * height * width, num_frames, channels).
    """
    import torch

    frames = frames.to(hidden_states.device)
    weights = weights.to(hidden_states)[:, :, None]  # (windows, length, 1)
    layers = [(block.norm1, block.attn1), (block.norm2, block.attn2)]
    mixed = torch.zeros_like(hidden_states)
    for window_frames, window_weights in zip(frames, weights, strict=True):
        window = hidden_states[:, window_frames]  # (B * height * width, length, channels)
        for norm, attention in layers:
            window = window + attention(block.pos_embed(norm(window)))
        mixed[:, window_frames] += window * window_weights
    return mixed + block.ff(block.norm3(mixed))
