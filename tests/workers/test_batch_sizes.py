"""What was measured says how many jobs share a call: on that device, with that entry, until memory runs out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyreel.batching import batch_limit
from polyreel.catalogue import Catalogue
from polyreel.entries import Placement, ServedModel
from workers.batch_sizes import BatchSizes, MeasuredSize, Run, best, device_name, store

ENTRY = ServedModel(family="ltx", checkpoint="tiny:ltx")
CATALOGUE = Catalogue({"ltx-tiny": ENTRY})

#: Pixels of the sizes that are measured below.
SMALL, LARGE = 9 * 64 * 64, 17 * 64 * 64


def runs(*seconds_per_job: float, peaks: tuple[int, ...] = ()) -> tuple[Run, ...]:
    """Return runs of 1, 2, 4 and 8 jobs."""
    return tuple(
        Run(batch_size=2**n, seconds_per_job=seconds, peak_bytes=peaks[n] if peaks else None)
        for n, seconds in enumerate(seconds_per_job)
    )


def size(num_frames: int, batch_size: int, *, width: int = 64, peaks: tuple[int, ...] = ()) -> MeasuredSize:
    """Return a measured size of 64 rows in which `batch_size` came out best."""
    return MeasuredSize(
        num_frames=num_frames,
        height=64,
        width=width,
        num_inference_steps=4,
        batch_size=batch_size,
        runs=runs(1.0, 0.9, 0.8, 0.7, peaks=peaks),
    )


@pytest.mark.parametrize(
    ("seconds_per_job", "chosen"),
    [
        ((1.0,), 1),
        ((1.0, 0.95), 2),
        ((1.0, 0.96), 1),
        ((1.0, 0.9, 0.8, 0.7), 8),
        ((1.0, 0.9, 0.8, 0.79), 4),
        ((1.0, 0.98, 0.93), 4),  # not worth it for two, but for four
        ((1.0, 1.5, 1.2, 1.1), 1),  # each better than the one before, and none than one alone
        ((1.0, 0.5, 0.9, 0.6), 2),
    ],
)
def test_a_larger_batch_must_be_five_per_cent_better_than_every_smaller_one(
    seconds_per_job: tuple[float, ...], chosen: int
) -> None:
    assert best(runs(*seconds_per_job)) == chosen


# -- the file


def test_what_was_measured_comes_back_as_limits_in_rising_order(tmp_path: Path) -> None:
    path = tmp_path / "state" / "batches.json"
    store(path, "ltx-tiny", ENTRY, "cpu", (size(17, 2), size(9, 8)))
    assert BatchSizes.load(path, CATALOGUE, "cpu").limits() == {"ltx-tiny": ((SMALL, 8), (LARGE, 2))}


def test_without_a_file_nothing_was_measured(tmp_path: Path) -> None:
    assert BatchSizes.load(tmp_path / "batches.json", CATALOGUE, "cpu").limits() == {}


def test_a_measurement_counts_for_its_own_device_and_entry_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "batches.json"
    store(path, "ltx-tiny", ENTRY, "NVIDIA L4", (size(9, 8),))
    assert BatchSizes.load(path, CATALOGUE, "NVIDIA L4").limits() == {"ltx-tiny": ((SMALL, 8),)}
    assert BatchSizes.load(path, CATALOGUE, "NVIDIA L40S").limits() == {}
    assert "batches not measured on this device" in capsys.readouterr().out
    tiled = ENTRY.model_copy(update={"placement": Placement(vae_tiling=True)})
    assert BatchSizes.load(path, Catalogue({"ltx-tiny": tiled}), "NVIDIA L4").limits() == {}
    assert "polyreel bench batch ltx-tiny" in capsys.readouterr().out
    assert BatchSizes.load(path, Catalogue({"other": ENTRY}), "NVIDIA L4").limits() == {}


def test_another_measurement_adds_sizes_and_replaces_the_same_one(tmp_path: Path) -> None:
    path = tmp_path / "batches.json"
    store(path, "ltx-tiny", ENTRY, "cpu", (size(9, 8),))
    store(path, "ltx-tiny", ENTRY, "NVIDIA L4", (size(9, 4),))
    store(path, "other", ENTRY, "cpu", (size(9, 2),))
    store(path, "ltx-tiny", ENTRY, "cpu", (size(17, 2),))
    assert BatchSizes.load(path, CATALOGUE, "cpu").limits() == {"ltx-tiny": ((SMALL, 8), (LARGE, 2))}
    store(path, "ltx-tiny", ENTRY, "cpu", (size(9, 1),))
    assert BatchSizes.load(path, CATALOGUE, "cpu").limits() == {"ltx-tiny": ((SMALL, 1), (LARGE, 2))}
    assert BatchSizes.load(path, CATALOGUE, "NVIDIA L4").limits() == {"ltx-tiny": ((SMALL, 4),)}
    assert set(json.loads(path.read_text())["models"]) == {"ltx-tiny", "other"}
    assert sorted(file.name for file in tmp_path.iterdir()) == [".batches.json.lock", "batches.json"]


def test_what_was_measured_with_another_entry_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "batches.json"
    store(path, "ltx-tiny", ENTRY, "cpu", (size(9, 8),))
    changed = ENTRY.model_copy(update={"dtype": "bfloat16"})
    store(path, "ltx-tiny", changed, "cpu", (size(17, 2),))
    assert BatchSizes.load(path, Catalogue({"ltx-tiny": changed}), "cpu").limits() == {"ltx-tiny": ((LARGE, 2),)}


@pytest.mark.parametrize("content", ["", "{", '{"version": 2}', '{"version": 1, "models": {"ltx-tiny": 4}}'])
def test_a_damaged_file_is_said_to_be_and_jobs_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    path = tmp_path / "batches.json"
    path.write_text(content)
    assert BatchSizes.load(path, CATALOGUE, "cpu").limits() == {}
    assert "batch sizes not read" in capsys.readouterr().out


def test_of_two_shapes_with_as_many_pixels_the_smaller_batch_counts() -> None:
    wide = MeasuredSize(num_frames=9, height=32, width=128, num_inference_steps=4, batch_size=2, runs=runs(1.0, 0.9))
    assert BatchSizes({"ltx-tiny": (size(9, 8), wide)}).limits() == {"ltx-tiny": ((SMALL, 2),)}


def test_a_cpu_is_called_cpu() -> None:
    assert device_name("cpu") == "cpu"


# -- what runs out of memory


def limit(sizes: BatchSizes, pixels: int) -> int:
    return batch_limit(sizes.limits()["ltx-tiny"], pixels)


def test_a_batch_without_memory_lowers_the_limit_of_its_size_and_of_larger_ones() -> None:
    sizes = BatchSizes({"ltx-tiny": (size(9, 8), size(17, 8))})
    sizes.remember_split("ltx-tiny", 13 * 64 * 64, 2)
    assert [limit(sizes, frames * 64 * 64) for frames in (9, 10, 13, 14, 17, 18)] == [8, 2, 2, 2, 2, 1]
    assert [sizes.most("ltx-tiny", frames * 64 * 64, 8) for frames in (9, 12, 13, 14, 18)] == [8, 8, 2, 2, 2]


def test_the_lowest_limit_stays_and_other_models_keep_theirs() -> None:
    sizes = BatchSizes({"ltx-tiny": (size(9, 8),), "other": (size(9, 8),)})
    sizes.remember_split("ltx-tiny", SMALL, 2)
    sizes.remember_split("ltx-tiny", SMALL, 4)
    assert sizes.limits() == {"ltx-tiny": ((SMALL, 2),), "other": ((SMALL, 8),)}


def test_a_size_that_was_not_measured_gains_nothing_by_a_split() -> None:
    sizes = BatchSizes({"ltx-tiny": (size(9, 8),)})
    sizes.remember_split("ltx-tiny", LARGE, 4)
    assert limit(sizes, LARGE) == 1
    assert sizes.limits() == {"ltx-tiny": ((SMALL, 8),)}


def test_after_an_hour_a_split_is_forgotten() -> None:
    now = 1000.0
    sizes = BatchSizes({"ltx-tiny": (size(9, 8),)}, clock=lambda: now)
    sizes.remember_split("ltx-tiny", SMALL, 2)
    now += 3599
    assert (limit(sizes, SMALL), sizes.most("ltx-tiny", SMALL, 8)) == (2, 2)
    now += 2
    assert (limit(sizes, SMALL), sizes.most("ltx-tiny", SMALL, 8)) == (8, 8)


@pytest.mark.parametrize(
    ("pixels", "wanted", "free_bytes", "fitting"),
    [
        (SMALL, 8, 800, 8),
        (SMALL, 8, 799, 4),
        (SMALL, 3, 799, 3),
        (SMALL, 8, 150, 1),
        (SMALL, 8, 0, 1),  # one alone is tried, and goes down its ladder
        (SMALL - 1, 8, 799, 4),
        (LARGE, 8, 0, 8),  # nothing is known of it
    ],
)
def test_no_more_fit_than_were_measured_to(pixels: int, wanted: int, free_bytes: int, fitting: int) -> None:
    sizes = BatchSizes({"ltx-tiny": (size(9, 8, peaks=(100, 200, 400, 800)),)})
    assert sizes.fitting("ltx-tiny", pixels, wanted, free_bytes) == fitting


def test_without_figures_of_memory_all_fit() -> None:
    assert BatchSizes({"ltx-tiny": (size(9, 8),)}).fitting("ltx-tiny", SMALL, 8, 0) == 8
    assert BatchSizes().fitting("ltx-tiny", SMALL, 8, 0) == 8
