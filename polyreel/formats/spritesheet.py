"""Spritesheet: frames from the whole length of the video side by side in one JPEG, for scrubbers and catalogues."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from polyreel.formats import Audio, Format, Kind
from polyreel.formats._ffmpeg import check_frames, whole_file
from polyreel.request import OutputSpec

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_MOST_TILES = 25
_LONGEST_SIDE = 320  # of a tile, pixels: the largest sheet is 1600 x 1600
_QUALITY = 85  # of JPEG, 1..95


class Spritesheet:
    """JPEG with up to 25 frames, evenly spaced from the first to the last, in rows from left to right.

    The grid is as square as their number allows: 25 frames are 5 x 5, 7 are 3 x 3 with two black tiles.
    """

    name = "spritesheet"
    media_type = "image/jpeg"
    extension = "jpg"
    kind: Kind = "picture"

    def encode(
        self,
        frames: np.ndarray,
        spec: OutputSpec,
        path: Path,
        *,
        audio: Audio | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the sheet to `path`; see `Format.encode`.

        Args:
            frames: uint8, shape (num_frames, height, width, 3), RGB.
            spec: neither fps nor quality has a meaning here.
            path: where to write; removed again on failure.
            audio: left out.
            metadata: left out; the video beside it carries them.

        Raises:
            EncodingFailed: wrong frames, or the file could not be written.
        """
        check_frames(frames)
        with whole_file(path):
            _sheet(frames).save(path, "jpeg", quality=_QUALITY)


def _sheet(frames: np.ndarray) -> Image.Image:
    from PIL import Image

    chosen = _spaced(len(frames))
    width, height = _tile(frames.shape[2], frames.shape[1])
    columns = ceil(sqrt(len(chosen)))
    sheet = Image.new("RGB", (columns * width, ceil(len(chosen) / columns) * height))
    for place, number in enumerate(chosen):
        tile = Image.fromarray(frames[number]).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(tile, (place % columns * width, place // columns * height))
    return sheet


def _spaced(num_frames: int) -> list[int]:
    """Return the numbers of the frames on the sheet, the first and the last among them."""
    tiles = min(num_frames, _MOST_TILES)
    return [round(tile * (num_frames - 1) / max(1, tiles - 1)) for tile in range(tiles)]


def _tile(width: int, height: int) -> tuple[int, int]:
    """Return the size of a tile in pixels: the frame's, made smaller to `_LONGEST_SIDE`, never larger."""
    scale = min(1.0, _LONGEST_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


FORMAT: Format = Spritesheet()
