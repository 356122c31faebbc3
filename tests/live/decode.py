"""Reads delivered files back, the way a player would."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import av
import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Clip:
    """What a file really holds: RGB frames of shape (num_frames, height, width, 3), and its rate."""

    frames: np.ndarray
    fps: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(num_frames, width, height), as people say it."""
        return self.frames.shape[0], self.frames.shape[2], self.frames.shape[1]


def decode(content: bytes) -> Clip:
    """Decode an mp4, webm or gif."""
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return Clip(frames, float(stream.average_rate or 0))


def decode_zip(content: bytes) -> np.ndarray:
    """Decode a zip of PNG frames."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in sorted(archive.namelist())])
