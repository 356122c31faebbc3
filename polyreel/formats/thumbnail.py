"""Thumbnail: one frame of the video as a WebP picture, for lists and posters.

The frame in the middle, because a first frame is often dark or still.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from polyreel.formats import Audio, Format, Kind
from polyreel.formats._ffmpeg import check_frames, whole_file
from polyreel.request import OutputSpec

if TYPE_CHECKING:
    import numpy as np

_QUALITY = 85  # of WebP, 0..100


class Thumbnail:
    """WebP of the frame in the middle, in the size of the video."""

    name = "thumbnail"
    media_type = "image/webp"
    extension = "webp"
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
        """Write the frame in the middle to `path`; see `Format.encode`.

        Args:
            frames: uint8, shape (num_frames, height, width, 3), RGB.
            spec: neither fps nor quality has a meaning here.
            path: where to write; removed again on failure.
            audio: left out.
            metadata: left out; the video beside it carries them.

        Raises:
            EncodingFailed: wrong frames, or the file could not be written.
        """
        from PIL import Image

        check_frames(frames)
        with whole_file(path):
            Image.fromarray(frames[len(frames) // 2]).save(path, "webp", quality=_QUALITY)


FORMAT: Format = Thumbnail()
