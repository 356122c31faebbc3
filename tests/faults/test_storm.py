"""The kill storm, short enough for every run of the suite and long enough for a night."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.faults.storm import storm


@pytest.mark.parametrize(
    ("seconds", "seed"),
    [
        pytest.param(30, 30, id="the same every time"),
        # Another seed each time: it is printed, and repeats the storm.
        pytest.param(120, None, marks=pytest.mark.slow, id="another every time"),
    ],
)
def test_nothing_is_lost_or_doubled_in_a_kill_storm(tmp_path: Path, seconds: float, seed: int | None) -> None:
    storm(seconds, secrets.randbelow(10**6) if seed is None else seed, tmp_path)
