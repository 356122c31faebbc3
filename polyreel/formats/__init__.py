"""Output formats: each module of this package turns frames into one kind of file.

A format publishes `FORMAT`, an object with the attributes of `Format`. Frames are uint8 arrays of shape
(num_frames, height, width, 3), RGB, 0..255. The same frames and options give the same bytes: no times, ids or
dates go into a file, and encoders run with a pinned number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from polyreel.discovery import discover
from polyreel.request import OutputSpec

if TYPE_CHECKING:  # the API process lists formats and their media types, and needs no numpy for it
    import numpy as np


#: What a file is: one that plays, every frame by itself, or a still picture that shows what the video is like.
Kind = Literal["video", "frames", "picture"]


@dataclass(frozen=True)
class Audio:
    """Sound that belongs to frames.

    Args:
        samples: float32 of shape (samples, channels), -1..1; 1 or 2 channels.
        sample_rate: samples per second.
    """

    samples: np.ndarray
    sample_rate: int


class Format(Protocol):
    """A kind of file.

    Attributes:
        name: what `OutputSpec.format` says, e.g. "mp4".
        media_type: the Content-Type of the file.
        extension: of the file name, without the dot; no two formats share one.
        kind: see `Kind`.
    """

    name: str
    media_type: str
    extension: str
    kind: Kind

    def encode(
        self,
        frames: np.ndarray,
        spec: OutputSpec,
        path: Path,
        *,
        audio: Audio | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write `frames` to `path`, which does not exist yet.

        Args:
            frames: uint8, shape (num_frames, height, width, 3), RGB.
            spec: fps and quality.
            path: where to write; the caller places the finished file atomically.
            audio: sound to go with the frames; a format without sound leaves it out.
            metadata: reproducible facts to write into the file, text by name: "title" (the prompt) and "comment"
                (the receipt as JSON); a format without room for them leaves them out.

        Raises:
            EncodingFailed: the encoder ended with an error.
        """


@cache
def formats() -> dict[str, Format]:
    """Return every output format by name."""
    return discover("polyreel.formats", "FORMAT")


def media_type_of(name: str) -> str:
    """Return the Content-Type of a file by the extension of its name, that of unknown bytes for any other."""
    extension = name.rpartition(".")[2]
    return next((f.media_type for f in formats().values() if f.extension == extension), "application/octet-stream")
