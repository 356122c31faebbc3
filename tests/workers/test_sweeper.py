"""What is swept, and when."""

from __future__ import annotations

import os
from pathlib import Path

from polyreel.storage.local import LocalStorage
from workers.sweeper import Sweeper

HOUR, DAY = 3600.0, 24 * 3600.0


def stored(folder: Path, name: str, age_s: float, now: float) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (now - age_s, now - age_s))
    return path


def test_a_result_goes_an_hour_after_its_retention_and_not_before(tmp_path: Path) -> None:
    now = 2_000_000_000.0
    storage = LocalStorage(tmp_path / "results")
    kept = stored(storage.folder, "out/a/a.mp4", 7 * DAY + 0.9 * HOUR, now)
    gone = stored(storage.folder, "out/b/b.mp4", 7 * DAY + 1.1 * HOUR, now)
    assert Sweeper(storage, 7 * DAY, tmp_path / "scratch").sweep(now) == 1
    assert kept.exists()
    assert not gone.exists()


def test_what_killed_workers_left_in_scratch_goes_after_a_day(tmp_path: Path) -> None:
    now = 2_000_000_000.0
    old, young = tmp_path / "scratch" / "old", tmp_path / "scratch" / "young"
    for folder, age_s in ((old, 25 * HOUR), (young, 23 * HOUR)):
        stored(folder, "half.mp4", age_s, now)
        os.utime(folder, (now - age_s, now - age_s))
    Sweeper(LocalStorage(tmp_path / "results"), DAY, tmp_path / "scratch").sweep(now)
    assert not old.exists()
    assert young.exists()


def test_a_worker_sweeps_as_soon_as_it_starts(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "results")
    gone = stored(storage.folder, "out/a/a.mp4", 0, 1_000_000_000.0)
    sweeper = Sweeper(storage, DAY, tmp_path / "scratch")
    sweeper.start()
    for _ in range(200):
        if not gone.exists():
            break
        sweeper._thread.join(0.01)
    sweeper.stop()
    assert not gone.exists()


def test_what_another_worker_removes_meanwhile_stops_no_sweep(tmp_path: Path) -> None:
    now = 2_000_000_000.0
    storage = LocalStorage(tmp_path / "results")
    gone = stored(storage.folder, "out/b/b.mp4", 8 * DAY, now)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "dangling").symlink_to(tmp_path / "nowhere")  # listed, and not there
    assert Sweeper(storage, 7 * DAY, tmp_path / "scratch").sweep(now) == 1
    assert not gone.exists()
