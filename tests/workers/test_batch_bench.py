"""`polyreel bench batch`: every size in every round, until memory ends the series; the file is what workers read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from polyreel.batching import batch_key
from polyreel.errors import GenerationFailed, InvalidRequest, OutOfMemory
from polyreel.profiles import load_settings
from workers.batch_sizes import BatchSizes, Run
from workers.bench_batch import Taken, _parser, as_size, batch_of, main, measure, read_requests, table


class Device:
    """Takes one second for a call and half of one for each job; memory holds `room` jobs from call `ends` on.

    Attributes:
        calls: (batch size, steps) of each.
    """

    def __init__(self, room: int = 8, ends: int = 0) -> None:
        self.calls: list[tuple[int, int]] = []
        self.room = room
        self.ends = ends

    def __call__(self, batch_size: int, steps: int) -> Taken:
        self.calls.append((batch_size, steps))
        if batch_size > self.room and len(self.calls) > self.ends:
            raise OutOfMemory("The device ran out of memory.", "denoising")
        return Taken(1 + batch_size / 2, 1000 * batch_size)


def untold(text: str) -> None:
    """Nobody looks at what is being done."""


def test_every_size_is_warmed_up_with_one_step_and_then_run_in_every_round() -> None:
    device = Device()
    runs = measure(device, 4, 3, untold)
    assert device.calls[:4] == [(1, 1), (2, 1), (4, 1), (8, 1)]
    assert device.calls[4:8] == [(1, 4), (2, 4), (4, 4), (8, 4)]
    assert device.calls[8:12] == [(8, 4), (4, 4), (2, 4), (1, 4)]
    assert device.calls[12:] == [(1, 4), (2, 4), (4, 4), (8, 4)]
    assert runs == (
        Run(batch_size=1, seconds_per_job=1.5, peak_bytes=1000),
        Run(batch_size=2, seconds_per_job=1.0, peak_bytes=2000),
        Run(batch_size=4, seconds_per_job=0.75, peak_bytes=4000),
        Run(batch_size=8, seconds_per_job=0.625, peak_bytes=8000),
    )


def test_the_median_of_the_rounds_counts() -> None:
    seconds = iter([9.0, 5.0, 1.0, 3.0])

    def call(batch_size: int, steps: int) -> Taken:
        if batch_size > 1:
            raise OutOfMemory("The device ran out of memory.", "denoising")
        return Taken(next(seconds))

    assert measure(call, 4, 3, untold) == (Run(batch_size=1, seconds_per_job=3.0),)  # of 5, 1 and 3


@pytest.mark.parametrize(
    ("ends", "sizes", "eights"),
    [(0, [1, 2], 0), (6, [1, 2], 0), (9, [1, 2], 2), (15, [1, 2, 4], 3)],
    ids=["at once", "in round 1", "in round 2", "the last call"],
)
def test_memory_that_runs_out_ends_the_series(ends: int, sizes: list[int], eights: int) -> None:
    device = Device(room=2, ends=ends)
    assert [run.batch_size for run in measure(device, 4, 3, untold)] == sizes
    assert device.calls.count((1, 4)) == device.calls.count((2, 4)) == 3
    assert device.calls.count((8, 4)) == eights  # not tried any more once four were too many


def test_one_job_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(OutOfMemory):
        measure(Device(room=0), 4, 3, untold)


def test_a_model_that_fails_is_an_error() -> None:
    def broken(batch_size: int, steps: int) -> Taken:
        raise GenerationFailed("The model returned NaN.")

    with pytest.raises(GenerationFailed):
        measure(broken, 4, 3, untold)


def test_the_table_shows_the_gain_over_one_alone_and_what_was_chosen() -> None:
    [request] = read_requests(_parser().parse_args(["ltx-tiny", "--size=9x64x96"]), load_settings().settings.catalogue)
    measured = as_size(request, measure(Device(room=2), 4, 1, untold))
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table("ltx-tiny on cpu", [measured]))
    lines = [line.split() for line in shown.get().splitlines()]
    assert ["9x64x96", "20", "1", "1.500", "1.00", "0.00"] in lines
    assert ["9x64x96", "20", "2", "1.000", "1.50", "0.00", "chosen"] in lines


def test_the_jobs_of_a_batch_may_share_a_call_and_are_not_the_same() -> None:
    [request] = read_requests(_parser().parse_args(["atelier"]), load_settings().settings.catalogue)
    batch = [prepared.request for prepared in batch_of(request, 8)]
    assert {batch_key(one) for one in batch} == {batch_key(request)} != {""}
    assert [one.seed for one in batch] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert len({one.prompts[0].prompt for one in batch}) > 1


def test_sizes_and_steps_are_the_models_own_unless_they_are_given() -> None:
    catalogue = load_settings().settings.catalogue
    [usual] = read_requests(_parser().parse_args(["ltx-tiny"]), catalogue)
    assert (usual.num_frames, usual.height, usual.width, usual.num_inference_steps) == (25, 256, 256, 20)
    given = ["ltx-tiny", "--size=17x64x96", "--size=9x128x64", "--size=17x64x96", "--steps=2"]
    first, second = read_requests(_parser().parse_args(given), catalogue)
    assert (first.num_frames, first.height, first.width, first.num_inference_steps) == (17, 64, 96, 2)
    assert (second.num_frames, second.height, second.width) == (9, 128, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ltx-tny"], "MODEL ltx-tny is not in the catalogue. Did you mean ltx-tiny?"),
        (["ltx-tiny", "--size=64x96"], "--size must be FRAMESxHEIGHTxWIDTH, such as 81x480x832, got 64x96"),
        (["ltx-tiny", "--size=0x64x96"], "--size 0x64x96: frames must be between 1 and 129, got 0"),
        (["ltx-tiny", "--size=9x32x96"], "--size 9x32x96: sides must be between 64 and 1280, got 32"),
        (["ltx-tiny", "--size=129x1280x1280"], "frames x width x height must be at most 80000000 pixels"),
        (["ltx-tiny", "--steps=0"], "--steps must be between 1 and 100, got 0"),
        (["ltx-tiny", "--repeat=0"], "--repeat must be between 1 and 100, got 0"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_its_name(arguments: list[str], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_requests(_parser().parse_args(arguments), load_settings().settings.catalogue)
    assert message in str(refused.value)


def test_a_wrong_argument_is_exit_code_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ltx-tiny", "--steps=0"]) == 2
    assert capsys.readouterr().err == "polyreel bench batch: --steps must be between 1 and 100, got 0\n"


def test_a_model_that_needs_pictures_has_no_batches() -> None:
    catalogue = load_settings().settings.catalogue
    catalogue.models["ltx-tiny"] = catalogue.models["ltx-tiny"].model_copy(update={"tasks": ("i2v",)})
    with pytest.raises(InvalidRequest, match="makes videos of pictures alone, and such jobs never share a call"):
        read_requests(_parser().parse_args(["ltx-tiny"]), catalogue)


@pytest.mark.slow
def test_the_command_measures_a_model_and_a_worker_reads_what_it_stored(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("polyreel")), "bench", "batch", "ltx-tiny", "--size=9x64x64"]
    flags = ["--steps=1", "--repeat=1", "--config=tiny", f"--state-dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "ltx-tiny on cpu" in done.stdout
    rows = [line.split()[:3] for line in done.stdout.splitlines() if "9x64x64" in line]
    assert rows == [["9x64x64", "1", size] for size in ("1", "2", "4", "8")]
    assert done.stdout.count("chosen") == 1
    catalogue = load_settings("tiny").settings.catalogue
    [(pixels, chosen)] = BatchSizes.load(tmp_path / "batches.json", catalogue, "cpu").limits()["ltx-tiny"]
    assert pixels == 9 * 64 * 64
    assert chosen in (1, 2, 4, 8)
