"""GIF in particular: delays, looping, colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import decode, moving_gradient, psnr, still

from polyreel.errors import EncodingFailed
from polyreel.formats.gif import FORMAT
from polyreel.request import OutputSpec


def encode(frames: np.ndarray, folder: Path, fps: float = 8) -> Path:
    FORMAT.encode(frames, OutputSpec("gif", fps), folder / "video.gif")
    return folder / "video.gif"


def delays_cs(file: Path) -> list[int]:
    """Return the delay of each frame in centiseconds, from the graphic control extensions themselves."""
    parts = file.read_bytes().split(b"\x21\xf9\x04")
    return [int.from_bytes(part[1:3], "little") for part in parts[1:]]


@pytest.mark.parametrize(
    ("fps", "delays"),
    [
        (7, [14, 15, 14, 14, 14, 15, 14, 14]),
        (8, [13, 12, 13, 12, 13, 12, 13, 12]),
        (12, [8, 9, 8, 8, 9, 8, 8, 9]),
        (10, [10, 10, 10, 10, 10, 10, 10, 10]),
        (25, [4, 4, 4, 4, 4, 4, 4, 4]),
        (16, [6, 7, 6, 6, 6, 7, 6, 6]),
        (23.976, [4, 4, 5, 4, 4, 4, 4, 4]),
        (0.5, [200, 200, 200, 200, 200, 200, 200, 200]),
        (100, [1, 1, 1, 1, 1, 1, 1, 1]),
        (240, [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("frames", [moving_gradient(8), still(8)], ids=["moving", "still"])
def test_delays_are_whole_centiseconds_that_add_up(fps, delays, frames, tmp_path):
    assert delays_cs(encode(frames, tmp_path, fps)) == delays


def test_a_single_frame_has_its_delay(tmp_path):
    assert delays_cs(encode(moving_gradient(1), tmp_path, 7)) == [14]


def test_a_rate_too_slow_for_a_gif_is_refused(tmp_path):
    with pytest.raises(EncodingFailed, match=r"at most 655\.35 s, got fps 0\.001"):
        encode(moving_gradient(2), tmp_path, 0.001)


def test_it_loops_for_ever(tmp_path):
    content = encode(moving_gradient(3), tmp_path).read_bytes()

    assert b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00" in content


def test_one_palette_serves_the_whole_clip(tmp_path):
    content = encode(moving_gradient(3), tmp_path).read_bytes()

    assert content[:6] == b"GIF89a"
    assert content[10] & 0b10000111 == 0b10000111  # a global table of 256 colours
    assert len(content) < 3 * 64 * 64 + 2 * 768


def test_few_colours_are_kept_exactly(tmp_path):
    colours = np.array([[0, 0, 0], [255, 255, 255], [200, 30, 77], [13, 99, 250], [128, 128, 128]], np.uint8)
    frames = colours[np.random.default_rng(0).integers(0, 5, (4, 32, 32))]

    assert np.array_equal(decode(encode(frames, tmp_path)), frames)


def test_a_dark_gradient_has_no_steps(tmp_path):
    ramp = np.linspace(10, 60, 256).round().astype(np.uint8)
    frames = np.broadcast_to(ramp[:, None], (2, 64, 256, 3))

    decoded = decode(encode(np.ascontiguousarray(frames), tmp_path))

    columns = decoded.astype(float).mean((0, 1, 3))
    assert np.abs(columns - ramp).max() <= 2  # of 255; steps of 5 bits per channel would be off by 4


def test_an_unchanged_pixel_does_not_shimmer(tmp_path):
    frames = still(6)
    frames[:, :16, :16] = moving_gradient(6)[:, :16, :16]  # a moving corner

    decoded = decode(encode(frames, tmp_path))

    assert (decoded[:, 16:] == decoded[0, 16:]).all()


def test_noise_of_all_colours_survives(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8)

    assert psnr(frames, decode(encode(frames, tmp_path))) >= 24.0  # 25.2 dB when this was written


def test_pillow_reads_it_as_an_animation(tmp_path):
    with Image.open(encode(moving_gradient(5), tmp_path)) as image:
        assert (image.format, image.size, image.n_frames, image.info["loop"]) == ("GIF", (64, 64), 5, 0)
