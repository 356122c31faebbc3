"""Scenes to encode, and a decoder that is not the encoder: PyAV brings its own libraries."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import av
import numpy as np
from PIL import Image


def moving_gradient(num_frames: int = 9, height: int = 64, width: int = 64) -> np.ndarray:
    """Return slow colour waves and a dark disc that moves, uint8 (num_frames, height, width, 3)."""
    t, y, x = np.mgrid[0:num_frames, 0:height, 0:width].astype(float)
    red = 128 + 100 * np.sin(x / 20 + t / 5)
    green = 128 + 90 * np.sin(y / 16 - t / 7)
    blue = 120 + 80 * np.cos((x + y) / 25)
    is_disc = (x - 20 - 2 * t) ** 2 + (y - 30) ** 2 < 100
    return np.where(is_disc[..., None], 40, np.stack([red, green, blue], -1)).round().astype(np.uint8)


def still(num_frames: int) -> np.ndarray:
    """Return the same frame again and again."""
    return moving_gradient(1).repeat(num_frames, 0)


def decode(path: Path) -> np.ndarray:
    """Return the frames of any of the four kinds of file, uint8 (num_frames, height, width, 3), RGB."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return np.stack([np.array(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()])
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def frame_times(path: Path) -> list[float]:
    """Return when each frame of a video starts, in seconds, to the millisecond."""
    with av.open(str(path)) as container:
        return [round(float(frame.time), 3) for frame in container.decode(video=0)]


def duration_s(path: Path) -> float:
    """Return the length that a video states, in seconds, to the millisecond."""
    with av.open(str(path)) as container:
        return round(container.duration / 1_000_000, 3)


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB; infinite for equal pictures."""
    error = np.mean((ours.astype(float) - theirs.astype(float)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
