"""Pictures are brought to the size of a video without being stretched."""

from __future__ import annotations

import numpy as np
import pytest

from models._pictures import cover, enlarge, frames_of
from polyreel.errors import InvalidRequest
from tests.models.conftest import small_request, with_pictures


def test_frames_are_counted_from_both_ends():
    assert frames_of(with_pictures(small_request(), 4, 0, -2).request) == [4, 0, 3]
    assert frames_of(small_request()) == []


@pytest.mark.parametrize("name", ["wan22-i2v", "ltx", "animatediff"])
@pytest.mark.parametrize("frames", [(0, 0), (4, -1), (0, 5), (0, -6)])
def test_every_picture_needs_a_frame_of_its_own_in_every_family(load_once, name, frames):
    message = rf"a frame of 0 to 4 \(or of -5 to -1, from the end\) without another picture, got {frames[1]}\."
    with pytest.raises(InvalidRequest, match=message) as refusal:
        load_once(name).generate(with_pictures(small_request(), *frames))
    assert refusal.value.field == "images"


def test_a_wide_picture_loses_its_sides_and_keeps_its_centre():
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 255

    seen = np.asarray(cover(picture, 20, 20))
    assert seen.shape == (20, 20, 3)
    assert (seen[:, 6:-6] == 255).all()  # the filter reaches a few pixels over the border of the crop
    assert seen[:, 0].min() > 100


def test_a_tall_picture_loses_its_top_and_bottom():
    picture = np.zeros((30, 10, 3), np.uint8)
    picture[10:20] = 255

    seen = np.asarray(cover(picture, 20, 20))
    assert (seen[6:-6] == 255).all()
    assert seen[0].min() > 100


def test_a_picture_of_the_right_size_is_left_as_it_is():
    picture = np.random.default_rng(1).integers(0, 256, (16, 24, 3), np.uint8)

    assert np.array_equal(np.asarray(cover(picture, 16, 24)), picture)


def test_every_frame_is_enlarged():
    frames = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (10, 200)])

    larger = enlarge(frames, 16, 24)

    assert larger.shape == (2, 16, 24, 3)
    assert (larger[0] == 10).all()
    assert (larger[1] == 200).all()
