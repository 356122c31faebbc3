"""Output formats: each module of this package turns frames into one kind of file.

A format publishes `FORMAT`, an object with the attributes of `Format`. Frames are uint8 arrays of shape
(num_frames, height, width, 3), RGB, 0..255. The same frames and options give the same bytes: no times, ids or
dates go into a file, and encoders run with a pinned number of threads.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from polyreel.discovery import discover
from polyreel.request import OutputSpec

if TYPE_CHECKING:  # the API process lists formats and their media types, and needs no numpy for it
    import numpy as np


class Format(Protocol):
    """A kind of file.

    Attributes:
        name: what `OutputSpec.format` says, e.g. "mp4".
        media_type: the Content-Type of the file.
        extension: of the file name, without the dot.
    """

    name: str
    media_type: str
    extension: str

    def encode(self, frames: np.ndarray, spec: OutputSpec, path: Path) -> None:
        """Write `frames` to `path`, which does not exist yet.

        Args:
            frames: uint8, shape (num_frames, height, width, 3), RGB.
            spec: fps and quality.
            path: where to write; the caller places the finished file atomically.

        Raises:
            EncodingFailed: the encoder ended with an error.
        """


@cache
def formats() -> dict[str, Format]:
    """Return every output format by name."""
    return discover("polyreel.formats", "FORMAT")
