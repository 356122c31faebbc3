"""Pictures of what is being denoised, as small files."""

from __future__ import annotations

import io

import numpy as np

#: A preview's size at most, bytes: the API sends it again with every event.
MOST_BYTES = 10_000

#: How good the picture is, tried in turn until it is small enough; the last is taken as it comes. Noise needs the last.
_QUALITIES = (70, 40, 20)


def jpeg(picture: np.ndarray) -> bytes:
    """Return a picture as a JPEG file.

    Args:
        picture: uint8 of shape (height, width, 3), RGB, no side longer than 160 px.
    """
    from PIL import Image

    image = Image.fromarray(picture)
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() <= MOST_BYTES:
            break
    return file.getvalue()
