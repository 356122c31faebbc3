"""Closed loops: the last frame of a video leads back into the first as any frame leads into the next.

How: time is a circle, at every step and in every motion module (`models._windows`): the windows through which the
modules look go over the end of the video and on with its beginning. The last prompt fades back into the first one
before the end, and pictures are as near from behind as from ahead. Nothing else in AnimateDiff knows of time, so there
is no seam to hide: starting noise that is moved on by a stride (where it divides the frames) gives the same video,
moved on. It takes any scheduler, any number of frames, and second passes. It costs up to four times the windows of
an open video, in the attention of the motion modules alone.

Measured, on motion modules that smooth over time: the step from the last frame to the first is 0.8 to 0.9 of that
between neighbours; in the same videos left open it is 2 (8 frames) to 12 times that (24 frames).

Not chosen: rolling the latents between steps, which needs a scheduler without memory and moves the seam to where the
end lay in the last step (about 5 times a step between neighbours, measured alike); fading the end over into the
beginning, or playing back and forth, which show.

Other families: Wan and LTX look at all frames at once and cannot be closed so. Their picture to video models can be
given one picture as the first and as the last frame, which closes the loop where somebody has such a picture.

Source: windows that go over the end, around whole UNet calls and for videos longer than a window only, are what other
AnimateDiff programs call a closed loop, such as
https://github.com/neggles/animatediff-cli/blob/main/src/animatediff/pipelines/context.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: What a video's receipt says about how its loop was closed.
METHOD = "circular motion windows"

Tensor = Any  # torch is imported lazily

#: Gets (start frame, end frame, embeddings of the prompt there, and of the next one); see diffusers' FreeNoise.
Interpolate = Callable[[int, int, Tensor, Tensor], Tensor]


def closed_stride(length: int, stride: int) -> int:
    """Return the stride that gives windows of `length` frames at least four places to start from, 1 or more."""
    return max(1, min(stride, length // 4))


def fading_back(interpolate: Interpolate, last_start: int, num_frames: int) -> Interpolate:
    """Let the last prompt of a video pass into the first one where the video starts again.

    Args:
        interpolate: passes from one prompt into the next.
        last_start: the frame in which the last prompt starts.
        num_frames: of the video; the first prompt comes back right after the last frame.
    """
    first: Tensor = None

    def interpolate_closed(start_frame: int, end_frame: int, start_tensor: Tensor, end_tensor: Tensor) -> Tensor:
        nonlocal first
        if start_frame == 0:  # of the prompts, and once more of the negative prompts
            first = start_tensor
        if start_frame == last_start:
            # FreeNoise repeats the last prompt in the last frame, one before the video starts again.
            return interpolate(start_frame, num_frames, start_tensor, first)[: end_frame - start_frame + 1]
        return interpolate(start_frame, end_frame, start_tensor, end_tensor)

    return interpolate_closed
