"""ZIP in particular: names, dates, losslessness."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import pytest
from scenes import decode, moving_gradient

from polyreel.errors import EncodingFailed
from polyreel.formats import zip as zip_format
from polyreel.formats.zip import FORMAT
from polyreel.request import OutputSpec


def encode(frames: np.ndarray, folder: Path) -> Path:
    FORMAT.encode(frames, OutputSpec("zip", 8), folder / "video.zip")
    return folder / "video.zip"


def test_members_are_numbered_png_files(tmp_path):
    with ZipFile(encode(moving_gradient(3), tmp_path)) as archive:
        assert archive.namelist() == ["frame_00000.png", "frame_00001.png", "frame_00002.png"]
        assert archive.read("frame_00002.png")[:8] == b"\x89PNG\r\n\x1a\n"
        assert archive.testzip() is None


def test_members_are_stored_with_a_fixed_date_and_readable(tmp_path):
    with ZipFile(encode(moving_gradient(2), tmp_path)) as archive:
        for member in archive.infolist():
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert member.compress_type == ZIP_STORED
            assert oct(member.external_attr >> 16) == "0o100644"


def test_every_pixel_is_kept(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 63, 65, 3), np.uint8)

    assert np.array_equal(decode(encode(frames, tmp_path)), frames)


def test_a_frame_that_fails_leaves_no_archive(monkeypatch, tmp_path):
    png = zip_format._png
    done = []

    def fail_at_the_third(frame):
        if len(done) == 2:
            raise OSError("No space left on device")
        done.append(frame)
        return png(frame)

    monkeypatch.setattr(zip_format, "_png", fail_at_the_third)

    with pytest.raises(EncodingFailed, match=r"video\.zip could not be written: No space left on device"):
        encode(moving_gradient(5), tmp_path)

    assert list(tmp_path.iterdir()) == []
