"""WebM: VP9, for pages that want no patents; smaller than H.264 and slower to make.

Odd widths and heights are fine here: VP9 rounds the halved colour planes up.
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
# fast 6 ms a frame, 75 kB; good 15 ms, 61 kB; best 63 ms, 209 kB. libvpx's own "deadline best" takes 4 to 6 times
# as long as "good" with cpu-used 1 for the same PSNR, and cpu-used 0 twice as long for 0.0 dB.
_QUALITY = {
    "fast": ("-deadline", "realtime", "-cpu-used", "8", "-crf", "34"),
    "good": ("-deadline", "good", "-cpu-used", "4", "-crf", "31"),
    "best": ("-deadline", "good", "-cpu-used", "1", "-crf", "24"),
}


class WebM:
    """VP9 in WebM, BT.709 limited range."""

    name = "webm"
    media_type = "video/webm"
    extension = "webm"
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
            spec: any fps above 0, though WebM rounds the time of each frame to milliseconds; every quality counts.
            path: where to write; removed again on failure.
            audio: becomes Opus at 128 kbit/s and 48 kHz, the only rate that it has.
            metadata: into Matroska tags.

        Raises:
            EncodingFailed: wrong frames or options, or ffmpeg failed.
        """
        check_frames(frames)
        _, height, width, _ = frames.shape
        options = (
            *("-c:v", "libvpx-vp9", "-b:v", "0", *quality_options(_QUALITY, spec)),  # 0: crf alone decides
            *("-row-mt", "1", "-threads", str(THREADS), "-pix_fmt", "yuv420p", *BT709),
            *("-c:a", "libopus", "-b:a", "128k", "-ar", "48000", *REPRODUCIBLE, "-f", "webm"),
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


FORMAT: Format = WebM()
