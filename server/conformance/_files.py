"""What a delivered file is: its kind, frames and size, read without any decoder of videos.

Sources: ISO/IEC 14496-12 (boxes of an mp4: `stsz` counts the samples of a track, `stsd` has their size), EBML's magic
number (webm), and Pillow for pictures.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

#: Boxes on the way to a track's samples.
_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}

#: In a sample description: 8 bytes of the table, 8 of the entry's head, 24 to its width.
_STSD_TYPE, _STSD_WIDTH = 12, 40

_PICTURES = ("GIF", "PNG", "JPEG", "WEBP")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a file; 0 is unknown.

    Args:
        kind: "mp4", "webm", "gif", "png", "jpeg", "webp", "zip", or "unknown".
    """

    kind: str
    frames: int = 0
    width: int = 0
    height: int = 0

    @property
    def size(self) -> str:
        """As people say it."""
        return f"{self.width}x{self.height}"


def facts(content: bytes) -> Facts:
    """Return what a file is, whatever is in it."""
    try:
        if content[4:8] == b"ftyp":
            return _mp4(content)
        if content[:4] == b"\x1a\x45\xdf\xa3":
            return Facts("webm")
        if content[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return Facts("zip", frames=len(archive.namelist()))
        return _picture(content)
    except (ValueError, OSError, struct.error, zipfile.BadZipFile, SyntaxError, ArithmeticError):
        return Facts("unknown")


def members(content: bytes) -> list[str]:
    """Return the names in a zip, [] for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.namelist()
    except (ValueError, OSError, zipfile.BadZipFile):
        return []


def _picture(content: bytes) -> Facts:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_PICTURES) as picture:
                kind = (picture.format or "unknown").lower()
                return Facts(kind, getattr(picture, "n_frames", 1), *picture.size)
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return Facts("unknown")


def _mp4(content: bytes) -> Facts:
    """Return the frames and the size of the first track that has a size: sound has none."""
    frames = width = height = 0
    for name, body in _boxes(memoryview(content)):
        if name == b"stsd":
            width, height = struct.unpack_from(">HH", body, _STSD_WIDTH)
            if bytes(body[_STSD_TYPE : _STSD_TYPE + 4]) == b"mp4a":  # a sound has other things there
                width = height = 0
        elif name == b"stsz" and width:
            _, frames = struct.unpack_from(">4xII", body)
            break
    return Facts("mp4", frames, width, height)


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield name and body of the boxes that matter, in order."""
    start = 0
    while start + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, start)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", content, start + 8)
            head = 16
        end = start + length if length else len(content)
        if length and length < head:
            return
        body = content[start + head : end]
        if name in _CONTAINERS:
            yield from _boxes(body)
        else:
            yield name, body
        start = end
