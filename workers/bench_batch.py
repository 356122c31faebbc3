"""`polyreel bench batch`: what sharing a call gains on this machine, per size; workers take their batches from it.

Measured through the very code that serves (Residency, Family.generate), every batch size in every round and one job
alone as the control, because machines are noisy. Encoding and storing are not part of a call and not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.status import Status
from rich.table import Table

from models import PreparedRequest, Progress
from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE, ServedModel
from polyreel.errors import ConfigurationError, InvalidRequest, PolyreelError, did_you_mean
from polyreel.logs import configure_logs
from polyreel.processes import start_as
from polyreel.profiles import load_settings
from polyreel.request import PromptSpan, VideoRequest
from workers.batch_sizes import FILE, MeasuredSize, Run, best, device_name, store
from workers.failures import as_out_of_memory
from workers.memory import free_memory, let_go

if TYPE_CHECKING:  # it waits until the arguments are good
    from workers.residency import Residency

#: The batch sizes that are tried.
BATCH_SIZES = (1, 2, 4, 8)

#: Texts of a usual length; each job of a batch has its own.
_PROMPTS = (
    "a red fox trots through fresh snow at dawn, breath steaming, the camera follows close to the ground",
    "waves break over black rocks under a heavy sky, spray in slow motion",
    "a street market at night in the rain, neon signs mirrored in puddles, people under umbrellas",
    "an old steam train crosses a stone viaduct in autumn, seen from a hill",
)


@dataclass(frozen=True)
class Taken:
    """What one call took: seconds in all, and the peak of the device's memory beside what was there, where known."""

    seconds: float
    peak_bytes: int | None = None


#: Runs so many jobs in one call of so many denoising steps.
Call = Callable[[int, int], Taken]


def main(argv: list[str] | None = None) -> int:
    """Measure one model; return the exit code (0 measured, 1 the model failed, 2 wrong arguments, 130 stopped)."""
    options = _parser().parse_args(argv)
    start_as("polyreel bench batch", None)
    try:
        return _bench(options)
    except (ConfigurationError, InvalidRequest) as err:
        print(f"polyreel bench batch: {err}", file=sys.stderr)  # noqa: T201
        return 2
    except PolyreelError as err:
        print(f"polyreel bench batch: {err}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("polyreel bench batch: stopped; sizes that were finished are stored.", file=sys.stderr)  # noqa: T201
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="polyreel bench batch")
    parser.add_argument("model")
    parser.add_argument("--size", action="append", default=[])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    for name in ("config", "device"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--json", action="store_true")
    return parser


def _bench(options: argparse.Namespace) -> int:
    settings = load_settings(options.config, state_dir=options.state_dir, device=options.device).settings
    requests = read_requests(options, settings.catalogue)

    # From here on the arguments are good. What follows reads the environment when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    configure_logs("warning", "bench")

    from workers.residency import Residency

    residency = Residency(settings.catalogue, settings.state_dir / "checkpoints", settings.device, capacity=1)
    model, path, console = options.model, settings.state_dir / FILE, Console(stderr=True)
    with console.status(f"loading {model}"):
        residency.get(model)
        import torch

        torch.set_num_threads(settings.threads)
    device = device_name(residency.device)
    measured = []
    for request in requests:
        called = f"{request.num_frames}x{request.height}x{request.width}"
        with console.status(called) as status:

            def tell(text: str, called: str = called, status: Status = status) -> None:
                status.update(f"{called}: {text}")

            runs = measure(on_device(residency, request), request.num_inference_steps, options.repeat, tell)
        measured.append(as_size(request, runs))
        # Each at once: large models take an hour, and a stop must not cost what is known.
        store(path, model, settings.catalogue[model], device, tuple(measured))
    if options.json:
        sizes = [size.model_dump(mode="json") for size in measured]
        print(json.dumps({"model": model, "device": device, "sizes": sizes}))  # noqa: T201
    else:
        Console().print(table(f"{model} on {device}", measured))
    console.print(f"stored in {path}; workers read it when they start", soft_wrap=True)
    return 0


def read_requests(options: argparse.Namespace, catalogue: Catalogue) -> list[VideoRequest]:
    """Return one request for each size to measure, the first job of its batches.

    Raises:
        InvalidRequest: names the argument, what came and what is allowed.
    """
    entry = catalogue.models.get(options.model)
    if entry is None:
        raise InvalidRequest(
            f"MODEL {options.model} is not in the catalogue.{did_you_mean(options.model, catalogue.models)} "
            f"Known: {', '.join(catalogue.models)}."
        )
    if "t2v" not in entry.tasks:
        raise InvalidRequest(f"MODEL {options.model} makes videos of pictures alone, and such jobs never share a call.")
    steps = entry.defaults.num_inference_steps if options.steps is None else options.steps
    _check_range("--steps", steps, 1, entry.limits.num_inference_steps)
    _check_range("--repeat", options.repeat, 1, 100)
    usual = f"{entry.defaults.num_frames}x{entry.defaults.height}x{entry.defaults.width}"
    return [_request(options.model, entry, steps, text) for text in dict.fromkeys(options.size or [usual])]


def _request(model: str, entry: ServedModel, steps: int, text: str) -> VideoRequest:
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text, re.ASCII)
    if not size:
        raise InvalidRequest(f"--size must be FRAMESxHEIGHTxWIDTH, such as 81x480x832, got {text}")
    num_frames, height, width = map(int, size.groups())
    _check_range(f"--size {text}: frames", num_frames, 1, entry.limits.num_frames)
    for side in (height, width):
        _check_range(f"--size {text}: sides", side, MIN_SIDE, entry.limits.side)
    entry.limits.check_pixels(num_frames, height, width)
    return VideoRequest(
        model=model,
        prompts=(PromptSpan(_PROMPTS[0], num_frames),),
        height=height,
        width=width,
        fps=entry.defaults.fps,
        num_inference_steps=steps,
        guidance_scale=entry.defaults.guidance_scale,
        seed=0,
        outputs=(),
    )


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, got {value}")


def batch_of(request: VideoRequest, batch_size: int) -> list[PreparedRequest]:
    """Return so many jobs that may share a call, each with a prompt and a seed of its own."""
    texts = [PromptSpan(_PROMPTS[number % len(_PROMPTS)], request.num_frames) for number in range(batch_size)]
    return [PreparedRequest(replace(request, prompts=(text,), seed=seed)) for seed, text in enumerate(texts)]


def on_device(residency: Residency, request: VideoRequest) -> Call:
    """Return what runs jobs like `request` on their model, which is loaded, and looks at clock and memory."""
    import torch

    model, family = residency.get(request.model), residency.family(request.model)
    counts_memory = residency.device.startswith("cuda")

    def call(batch_size: int, steps: int) -> Taken:
        batch = batch_of(replace(request, num_inference_steps=steps), batch_size)
        before = 0
        if counts_memory:
            torch.cuda.reset_peak_memory_stats(residency.device)
            before = torch.cuda.memory_allocated(residency.device)
        since = time.perf_counter()
        family.generate(model, batch, _unwatched)  # its frames are on the CPU: the device has finished
        seconds = time.perf_counter() - since
        peak = torch.cuda.max_memory_allocated(residency.device) - before if counts_memory else None
        return Taken(seconds, peak)

    return call


def measure(call: Call, steps: int, repeat: int, tell: Callable[[str], None]) -> tuple[Run, ...]:
    """Run every batch size in every round, as far as memory goes; return them in rising order.

    Args:
        steps: denoising steps of what is timed; one is enough to warm up and to find out what does not fit.
        repeat: rounds, 1 or more.
        tell: gets what is being done, for the person who waits.

    Raises:
        OutOfMemory: one job alone does not fit.
        PolyreelError: what `Family.generate` raises.
    """
    taken: dict[int, list[Taken]] = {}
    for batch_size in BATCH_SIZES:
        tell(f"warming up a batch of {batch_size}")
        if not _fits(call, batch_size, 1):
            break
        taken[batch_size] = []
    for number in range(repeat):
        # To and fro, so that a machine that slows down meanwhile slows no size more than the others.
        for batch_size in sorted(taken, reverse=bool(number % 2)):
            if batch_size not in taken:
                continue  # a smaller one has run out of memory since
            tell(f"round {number + 1} of {repeat}, a batch of {batch_size}")
            if one := _fits(call, batch_size, steps):
                taken[batch_size].append(one)
            else:
                taken = {smaller: calls for smaller, calls in taken.items() if smaller < batch_size}
    return tuple(_run(batch_size, calls) for batch_size, calls in taken.items())


def _fits(call: Call, batch_size: int, steps: int) -> Taken | None:
    """Make a call; None when a batch runs out of memory."""
    try:
        return call(batch_size, steps)
    except Exception as err:
        if batch_size == 1 or as_out_of_memory(err) is None:
            raise
        let_go(err)
    free_memory()  # outside of the handler: until then the error keeps what it failed over alive
    return None


def _run(batch_size: int, calls: Sequence[Taken]) -> Run:
    peaks = [one.peak_bytes for one in calls if one.peak_bytes is not None]
    seconds = median(one.seconds for one in calls) / batch_size
    return Run(batch_size=batch_size, seconds_per_job=round(seconds, 6), peak_bytes=max(peaks, default=None))


def as_size(request: VideoRequest, runs: tuple[Run, ...]) -> MeasuredSize:
    """Return what was measured of jobs like `request`, with the batch size that follows from it."""
    return MeasuredSize(
        num_frames=request.num_frames,
        height=request.height,
        width=request.width,
        num_inference_steps=request.num_inference_steps,
        batch_size=best(runs),
        runs=runs,
    )


def table(title: str, measured: Sequence[MeasuredSize]) -> Table:
    """Return what was measured, a line for each batch size; the chosen one of each size is marked."""
    shown = Table("size", "steps", "B", "s per job", "gain", "peak GB", "", title=title, box=None, padding=(0, 2, 0, 0))
    for size in measured:
        for run in size.runs:
            shown.add_row(
                f"{size.num_frames}x{size.height}x{size.width}",
                str(size.num_inference_steps),
                str(run.batch_size),
                f"{run.seconds_per_job:.3f}",
                f"{size.runs[0].seconds_per_job / run.seconds_per_job:.2f}",
                "-" if run.peak_bytes is None else f"{run.peak_bytes / 1e9:.2f}",
                "chosen" if run.batch_size == size.batch_size else "",
            )
    return shown


def _unwatched(progress: Progress) -> None:
    """Nobody can cancel a measurement but with Ctrl-C."""


if __name__ == "__main__":
    sys.exit(main())
