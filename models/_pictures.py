"""Pictures that condition a video: the frames they are for, and their size; and frames brought to a larger size.

Resizing keeps the aspect and crops around the centre, in linear steps of Pillow's Lanczos filter: what a person would
do by hand, and what the hosted services do. Knows no pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polyreel.errors import InvalidRequest
from polyreel.request import VideoRequest

if TYPE_CHECKING:
    from PIL.Image import Image


def frames_of(request: VideoRequest) -> list[int]:
    """Return the frame of each of a request's pictures, in their order, counted from 0.

    Raises:
        InvalidRequest: the video has no such frame, or the frame has another picture already.
    """
    frames: list[int] = []
    for image in request.images:
        frame = image.frame_index + request.num_frames * (image.frame_index < 0)
        if not 0 <= frame < request.num_frames or frame in frames:
            raise InvalidRequest(
                f"images: frame_index must be a frame of 0 to {request.num_frames - 1} (or of {-request.num_frames} "
                f"to -1, from the end) without another picture, got {image.frame_index}.",
                field="images",
            )
        frames.append(frame)
    return frames


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
