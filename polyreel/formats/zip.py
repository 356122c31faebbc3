"""ZIP of PNG: every frame without loss, for people who edit.

A PNG is compressed already, so the archive only stores it. Level 1: level 6 takes three times as long (155 against
48 ms for a grainy frame of 512x512) and saves 15 %.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from polyreel.formats import Audio, Format, Kind
from polyreel.formats._ffmpeg import check_frames, whole_file
from polyreel.request import OutputSpec

if TYPE_CHECKING:
    import numpy as np

#: The earliest time that a zip file can say: the same frames give the same bytes on any day.
_DATE = (1980, 1, 1, 0, 0, 0)
_PNG_LEVEL = 1
_LONGEST_COMMENT = 65535  # bytes; its length has 16 bits
_READABLE = 0o100644 << 16  # rw-r--r--, or unzip makes files that nobody may read
_UNIX = 3  # else ZipInfo writes the system that it runs on


class Zip:
    """PNG files named frame_00000.png, frame_00001.png …"""

    name = "zip"
    media_type = "application/zip"
    extension = "zip"
    kind: Kind = "frames"

    def encode(
        self,
        frames: np.ndarray,
        spec: OutputSpec,
        path: Path,
        *,
        audio: Audio | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write `frames` to `path`; see `Format.encode`. One PNG is held in memory at a time.

        Args:
            frames: uint8, shape (num_frames, height, width, 3), RGB.
            spec: neither fps nor quality has a meaning here.
            path: where to write; removed again on failure.
            audio: left out, an archive of pictures is silent.
            metadata: its "comment" becomes the archive's, unless it is longer than an archive's may be.

        Raises:
            EncodingFailed: wrong frames, or the file could not be written.
        """
        check_frames(frames)
        with whole_file(path), ZipFile(path, "w", ZIP_STORED) as archive:
            for number, frame in enumerate(frames):
                archive.writestr(_member(number), _png(frame))
            comment = (metadata or {}).get("comment", "").encode("utf-8", "replace")
            if len(comment) <= _LONGEST_COMMENT:
                archive.comment = comment


def _member(number: int) -> ZipInfo:
    member = ZipInfo(f"frame_{number:05}.png", _DATE)
    member.external_attr = _READABLE
    member.create_system = _UNIX
    return member


def _png(frame: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "png", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


FORMAT: Format = Zip()
