"""The kill storm, short enough for every run of the suite and long enough for a night."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.faults.storm import storm


@pytest.mark.parametrize("seconds", [30, pytest.param(120, marks=pytest.mark.slow)])
def test_nothing_is_lost_or_doubled_in_a_kill_storm(tmp_path: Path, seconds: float) -> None:
    # Another seed each time: it is printed, and repeats the storm.
    storm(seconds, secrets.randbelow(10**6), tmp_path)
