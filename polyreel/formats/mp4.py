"""MP4: H.264, the format that everything plays.

Even sizes are 4:2:0, which every player knows; 4:2:0 halves width and height, so odd sizes are 4:4:4 and keep every
pixel that was asked for (browsers built on Chromium, VLC and mpv play it, Safari does not). The index stands in
front of the pictures, so that a player starts before the file is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from polyreel.formats import Audio, Format, Kind
from polyreel.formats._ffmpeg import (
    BT709,
    REPRODUCIBLE,
    THREADS,
    check_frames,
    encode_raw,
    frame_rate,
    quality_options,
    time_limit_s,
)
from polyreel.request import OutputSpec

if TYPE_CHECKING:
    import numpy as np

# Grainy moving scene, 25 frames of 512x512 on two cores (benchmarks/bench_formats.py):
# fast 6 ms a frame, 68 kB, 34.3 dB; good 15 ms, 198 kB, 34.5 dB; best 18 ms, 530 kB, 34.5 dB and more of the grain.
# Preset "slow" at crf 18 took 39 ms and 642 kB for 34.4 dB.
_QUALITY = {
    "fast": ("-preset", "veryfast", "-crf", "23"),
    "good": ("-preset", "medium", "-crf", "20"),
    "best": ("-preset", "medium", "-crf", "18"),
}


class Mp4:
    """H.264 in MP4, BT.709 limited range."""

    name = "mp4"
    media_type = "video/mp4"
    extension = "mp4"
    kind: Kind = "video"

    def encode(
        self,
        frames: np.ndarray,
        spec: OutputSpec,
        path: Path,
        *,
        audio: Audio | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write `frames` to `path`; see `Format.encode`.

        Args:
            frames: uint8, shape (num_frames, height, width, 3), RGB.
            spec: any fps above 0; every quality counts.
            path: where to write; removed again on failure.
            audio: becomes AAC at 192 kbit/s.
            metadata: into the title and comment atoms.

        Raises:
            EncodingFailed: wrong frames or options, or ffmpeg failed.
        """
        check_frames(frames)
        _, height, width, _ = frames.shape
        options = (
            *("-c:v", "libx264", *quality_options(_QUALITY, spec), "-threads", str(THREADS)),
            *("-pix_fmt", "yuv444p" if width % 2 or height % 2 else "yuv420p", *BT709),
            *("-c:a", "aac", "-b:a", "192k", "-movflags", "+faststart", *REPRODUCIBLE, "-f", "mp4"),
        )
        pictures = (frame.tobytes() for frame in frames)
        encode_raw(
            pictures,
            options,
            path,
            pix_fmt="rgb24",
            size=(width, height),
            rate=frame_rate(spec.fps),
            audio=audio,
            metadata=metadata,
            timeout_s=time_limit_s(frames),
        )


FORMAT: Format = Mp4()
