"""Sizes and frame counts: what a model can make, and how to get from there to what was asked.

The rule is "generate up, then trim": a request for any size and any number of frames runs at the smallest legal
geometry that contains it, and the surplus is cut off afterwards. diffusers would round in silence instead, for
some models downwards (LTX turns 8 frames into 1). Pure functions; nothing here knows torch.
"""

from __future__ import annotations

import numpy as np


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is `value` or more."""
    return -(-value // multiple) * multiple


def legal_frames(num_frames: int, frames_per_latent: int) -> int:
    """Return the smallest k * frames_per_latent + 1 that is `num_frames` or more.

    A causal video VAE decodes its first latent frame to one picture and each further one to `frames_per_latent`:
    4 for Wan (1, 5, 9, …), 8 for LTX (1, 9, 17, …).
    """
    return round_up(num_frames - 1, frames_per_latent) + 1


def fit(frames: np.ndarray, num_frames: int, height: int, width: int) -> np.ndarray:
    """Trim the tail and crop around the centre.

    Args:
        frames: (F, H, W, 3) with F >= num_frames, H >= height, W >= width.

    Returns:
        A view of shape (num_frames, height, width, 3).

    Raises:
        ValueError: `frames` is smaller than what was asked; a family computed its geometry wrongly.
    """
    made = frames.shape[:3]
    if any(have < want for have, want in zip(made, (num_frames, height, width), strict=True)):
        raise ValueError(f"The pipeline made {made} frames x height x width, less than {(num_frames, height, width)}.")
    top, left = (made[1] - height) // 2, (made[2] - width) // 2
    return frames[:num_frames, top : top + height, left : left + width]  # (num_frames, height, width, 3)
