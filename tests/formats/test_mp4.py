"""MP4 in particular: what players need to know about the stream."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from scenes import moving_gradient

from polyreel.formats.mp4 import FORMAT
from polyreel.request import OutputSpec


def encode(frames: np.ndarray, folder: Path, fps: float = 8, quality: str = "good") -> Path:
    FORMAT.encode(frames, OutputSpec("mp4", fps, quality), folder / "video.mp4")
    return folder / "video.mp4"


@pytest.mark.parametrize(
    ("height", "width", "pix_fmt"),
    [(64, 64, "yuv420p"), (63, 64, "yuv444p"), (64, 65, "yuv444p"), (63, 65, "yuv444p")],
)
def test_even_sizes_are_420_and_odd_sizes_444(height, width, pix_fmt, tmp_path):
    file = encode(moving_gradient(3, height, width), tmp_path)

    with av.open(str(file)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.height, codec.width) == ("h264", pix_fmt, height, width)


def test_the_index_stands_before_the_pictures(tmp_path):
    content = encode(moving_gradient(3), tmp_path).read_bytes()

    assert 0 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("size", [64, 63], ids=["420", "444"])
def test_colours_are_tagged_bt709_limited_in_the_stream_and_beside_it(size, tmp_path):
    file = encode(moving_gradient(3, size, size), tmp_path)

    with av.open(str(file)) as container:
        frame = next(container.decode(video=0))
        codec = container.streams.video[0].codec_context
        assert (frame.colorspace, frame.color_range, codec.color_primaries, codec.color_trc) == (1, 1, 1, 1)
    # nclx: primaries 1, transfer 1, matrix 1 (BT.709), full range flag 0; ISO/IEC 14496-12, 12.1.5
    assert b"colrnclx\x00\x01\x00\x01\x00\x01\x00" in file.read_bytes()


@pytest.mark.parametrize(
    ("rgb", "yuv"),
    [
        ((255, 0, 0), (63, 102, 240)),
        ((0, 255, 0), (173, 42, 26)),
        ((0, 0, 255), (32, 240, 118)),
        ((255, 255, 255), (235, 128, 128)),
        ((0, 0, 0), (16, 128, 128)),
    ],
    ids=["red", "green", "blue", "white", "black"],
)
@pytest.mark.parametrize("size", [64, 63], ids=["420", "444"])
def test_pure_colours_become_their_bt709_values(rgb, yuv, size, tmp_path):
    frames = np.empty((3, size, size, 3), np.uint8)
    frames[:] = rgb

    file = encode(frames, tmp_path, quality="best")

    with av.open(str(file)) as container:
        planes = next(container.decode(video=0)).planes
        assert [bytes(plane)[0] for plane in planes] == pytest.approx(yuv, abs=1)


def test_a_better_quality_takes_more_bytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    sizes = []
    for quality in ("fast", "good", "best"):
        (tmp_path / quality).mkdir()
        sizes.append(encode(noise, tmp_path / quality, quality=quality).stat().st_size)

    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize(
    ("fps", "rate"), [(23.976, (2997, 125)), (24000 / 1001, (24000, 1001)), (7.0, (7, 1)), (0.5, (1, 2))]
)
def test_the_rate_is_stated_as_an_exact_fraction(fps, rate, tmp_path):
    file = encode(moving_gradient(3), tmp_path, fps=fps)

    with av.open(str(file)) as container:
        average = container.streams.video[0].average_rate
        assert (average.numerator, average.denominator) == rate
