"""Pictures that condition a video, brought to the size at which it is denoised, and frames brought to a larger size.

Resizing keeps the aspect and crops around the centre, in linear steps of Pillow's Lanczos filter: what a person would
do by hand, and what the hosted services do. Knows no pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def cover(picture: np.ndarray, height: int, width: int) -> Image:
    """Return a picture that fills height x width: resized until it covers it, then cropped around its centre.

    Args:
        picture: uint8 of shape (any height, any width, 3), RGB.
        height, width: pixels.
    """
    from PIL import Image as pil

    image = pil.fromarray(picture)
    scale = max(height / image.height, width / image.width)
    # The part of the picture that will be seen, in its own pixels: resizing and cropping in one step.
    seen_width, seen_height = width / scale, height / scale
    left, top = (image.width - seen_width) / 2, (image.height - seen_height) / 2
    box = (left, top, left + seen_width, top + seen_height)
    return image.resize((width, height), pil.Resampling.LANCZOS, box=box)


def enlarge(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return frames of another size, each as `cover` would.

    Args:
        frames: uint8 of shape (F, H, W, 3), RGB.

    Returns:
        uint8 of shape (F, height, width, 3).
    """
    return np.stack([np.asarray(cover(frame, height, width)) for frame in frames])
