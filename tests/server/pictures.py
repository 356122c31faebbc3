"""Small pictures to send."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """Return the bytes of a picture file."""
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """Return a picture of one colour."""
    return encoded(Image.new("RGB", (width, height), (200, 40, 20)))


def picture_text(content: bytes) -> str:
    """Return a file as clients send it in JSON."""
    return base64.b64encode(content).decode()


def noise_png(side: int) -> bytes:
    """Return a picture that cannot be compressed, 3 bytes a pixel."""
    return encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)))
