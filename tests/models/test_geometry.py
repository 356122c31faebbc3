"""Generate up, then trim."""

from __future__ import annotations

import numpy as np
import pytest

from models._geometry import fit, legal_frames, round_up


@pytest.mark.parametrize(("asked", "made"), [(1, 1), (2, 5), (5, 5), (6, 9), (24, 25), (25, 25), (32, 33), (81, 81)])
def test_wan_makes_4k_plus_1_frames(asked, made):
    assert legal_frames(asked, 4) == made


@pytest.mark.parametrize(("asked", "made"), [(1, 1), (2, 9), (8, 9), (9, 9), (24, 25), (32, 33), (48, 49)])
def test_ltx_makes_8k_plus_1_frames(asked, made):
    assert legal_frames(asked, 8) == made


@pytest.mark.parametrize(("asked", "made"), [(1, 32), (32, 32), (33, 64), (512, 512)])
def test_sizes_go_up_to_the_next_multiple(asked, made):
    assert round_up(asked, 32) == made


def test_the_tail_is_trimmed_and_the_middle_kept():
    frames = np.zeros((5, 32, 32, 3), np.float32)
    frames[:4, 1:31, 6:26] = 1

    assert fit(frames, 4, 30, 20).all()
    assert fit(frames, 4, 30, 20).shape == (4, 30, 20, 3)


@pytest.mark.parametrize("asked", [(6, 32, 32), (5, 33, 32), (5, 32, 33)])
def test_too_few_frames_or_pixels_are_never_passed_on(asked):
    with pytest.raises(ValueError, match="less than"):
        fit(np.zeros((5, 32, 32, 3), np.float32), *asked)
