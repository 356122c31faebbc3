"""WebM in particular."""

from __future__ import annotations

import av
import numpy as np
from scenes import moving_gradient

from polyreel.formats.webm import FORMAT
from polyreel.request import OutputSpec


def test_the_codec_is_vp9_and_420_at_even_and_odd_sizes(tmp_path):
    for height, width in ((64, 64), (63, 65)):
        file = tmp_path / f"{height}.webm"

        FORMAT.encode(moving_gradient(3, height, width), OutputSpec("webm", 8), file)

        with av.open(str(file)) as container:
            codec = container.streams.video[0].codec_context
            assert (codec.name, codec.pix_fmt, codec.height, codec.width) == ("vp9", "yuv420p", height, width)


def test_red_becomes_bt709_and_says_so(tmp_path):
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    frames[..., 0] = 255

    FORMAT.encode(frames, OutputSpec("webm", 8, "best"), tmp_path / "video.webm")

    with av.open(str(tmp_path / "video.webm")) as container:
        frame = next(container.decode(video=0))
        codec = container.streams.video[0].codec_context
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
        assert (codec.color_primaries, codec.color_trc) == (1, 1)
        assert abs(bytes(frame.planes[0])[0] - 63) <= 2  # BT.601 would be 81
        assert abs(bytes(frame.planes[2])[0] - 240) <= 2


def test_the_file_is_webm_and_not_merely_matroska(tmp_path):
    FORMAT.encode(moving_gradient(3), OutputSpec("webm", 8), tmp_path / "video.webm")

    assert b"\x42\x82\x84webm" in (tmp_path / "video.webm").read_bytes()[:64]  # DocType
