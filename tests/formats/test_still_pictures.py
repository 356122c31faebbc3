"""Thumbnail and spritesheet: which frames they show, where, and how large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyreel.formats import formats
from polyreel.request import OutputSpec


def make(name: str, frames: np.ndarray, folder: Path) -> Image.Image:
    file = folder / f"picture.{formats()[name].extension}"
    formats()[name].encode(frames, OutputSpec(name, 8), file)
    with Image.open(file) as picture:
        picture.load()
    return picture


def greys(levels: list[int], height: int = 40, width: int = 64) -> np.ndarray:
    """Return one even frame for each level, uint8 (len(levels), height, width, 3)."""
    return np.ones((len(levels), height, width, 3), np.uint8) * np.array(levels, np.uint8)[:, None, None, None]


def test_a_thumbnail_is_the_frame_in_the_middle_as_webp_in_the_size_of_the_video(tmp_path):
    picture = make("thumbnail", greys([10, 60, 200, 90, 30]), tmp_path)

    assert (picture.format, picture.size) == ("WEBP", (64, 40))
    assert np.array(picture.convert("RGB")).mean() == pytest.approx(200, abs=2)


def test_a_video_of_one_frame_has_a_thumbnail(tmp_path):
    assert np.array(make("thumbnail", greys([77]), tmp_path)).mean() == pytest.approx(77, abs=2)


def test_a_spritesheet_shows_every_frame_of_a_short_video_in_reading_order(tmp_path):
    picture = make("spritesheet", greys([20, 60, 100, 140, 180, 220, 250]), tmp_path)

    assert (picture.format, picture.size) == ("JPEG", (3 * 64, 3 * 40))
    tiles = np.array(picture).reshape(3, 40, 3, 64, 3).mean((1, 3, 4))
    assert tiles == pytest.approx(np.array([[20, 60, 100], [140, 180, 220], [250, 0, 0]]), abs=3)


def test_a_spritesheet_of_a_long_video_has_25_frames_from_the_first_to_the_last(tmp_path):
    picture = make("spritesheet", greys(list(range(0, 241, 2)), 16, 32), tmp_path)  # 121 frames

    tiles = np.array(picture).reshape(5, 16, 5, 32, 3).mean((1, 3, 4)).ravel()
    assert tiles == pytest.approx(np.arange(0, 241, 10), abs=3)


@pytest.mark.parametrize(
    ("height", "width", "sheet"),
    [(480, 832, (2 * 320, 2 * 185)), (832, 480, (2 * 185, 2 * 320)), (64, 64, (128, 128)), (64, 4096, (640, 10))],
)
def test_no_tile_is_longer_than_320_pixels_nor_larger_than_the_video(height, width, sheet, tmp_path):
    assert make("spritesheet", greys([0, 80, 160, 240], height, width), tmp_path).size == sheet
