"""How many jobs of each model and size may share a call on this device: measured once, kept in a file, lowered here.

`polyreel bench batch` writes `batches.json` in the state folder; workers read it at their start. A measurement counts
for the catalogue entry and the device that it was made with, and for no other. What a batch that ran out of memory
teaches stays in this process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyreel.batching import SizedBatches
from polyreel.catalogue import Catalogue
from polyreel.entries import ServedModel

log = structlog.get_logger()

#: Name of the file in the state folder.
FILE = "batches.json"

#: A larger batch must need at most this share of the seconds per job of every smaller one to be worth its latency.
_WORTH = 0.95

#: How long a batch that ran out of memory lowers the limit: other programs come and go on a device.
_REMEMBERED_S = 3600

_Strict = ConfigDict(frozen=True, extra="forbid")


class Run(BaseModel):
    """One size of batch, measured.

    Args:
        batch_size: jobs in the call.
        seconds_per_job: median of the repeats, the call's seconds divided by its jobs.
        peak_bytes: most of the device that the call took beside what was there before it; None is not known.
    """

    model_config = _Strict
    batch_size: Annotated[int, Field(ge=1)]
    seconds_per_job: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    peak_bytes: Annotated[int, Field(ge=0)] | None = None


class MeasuredSize(BaseModel):
    """What was measured for jobs of one size.

    Args:
        batch_size: jobs that may share a call; what counts, so an operator may lower it in the file.
        runs: in rising order of batch size, the first one alone.
    """

    model_config = _Strict
    num_frames: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    num_inference_steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    runs: tuple[Run, ...]

    @property
    def pixels(self) -> int:
        """As `polyreel.batching.job_pixels`."""
        return self.num_frames * self.height * self.width


class _Measured(BaseModel):
    """All sizes of one model on one device; `entry_sha256` is of the catalogue entry that it was measured with."""

    model_config = _Strict
    entry_sha256: str
    sizes: tuple[MeasuredSize, ...]


class _File(BaseModel):
    """The whole file: catalogue name to device name to what was measured."""

    model_config = _Strict
    version: Literal[1] = 1
    models: dict[str, dict[str, _Measured]] = {}


def best(runs: tuple[Run, ...]) -> int:
    """Return the largest batch that takes at least 5 % less per job than every smaller one; 1 when none does."""
    chosen, fastest = 1, float("inf")
    for run in runs:
        if run.seconds_per_job <= _WORTH * fastest:
            chosen = run.batch_size
        fastest = min(fastest, run.seconds_per_job)
    return chosen


def entry_sha256(entry: ServedModel) -> str:
    """Return the digest of a catalogue entry: whatever changes in it asks for another measurement."""
    return hashlib.sha256(json.dumps(entry.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def device_name(device: str) -> str:
    """Return what a measurement is bound to: the GPU's own name, such as "NVIDIA L4", else "cpu" or "mps"."""
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)


class BatchSizes:
    """The limits of this process. One per worker, used by its main thread.

    Args:
        measured: catalogue name to sizes.
        clock: seconds.
    """

    def __init__(
        self,
        measured: Mapping[str, tuple[MeasuredSize, ...]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._measured = dict(measured or {})
        self._clock = clock
        self._splits: dict[str, dict[int, tuple[int, float]]] = {}  # model to pixels to (most jobs, since)

    @classmethod
    def load(cls, path: Path, catalogue: Catalogue, device_name: str) -> BatchSizes:
        """Read what was measured with these very entries on this kind of device; log what does not count.

        A missing file is the usual case, and a damaged one only makes jobs run alone.
        """
        measured = {}
        for model, devices in read(path).models.items():
            entry = catalogue.models.get(model)
            if entry is None:
                continue  # of another profile
            if device_name not in devices:
                log.info("batches not measured on this device", model=model, device=device_name, measured=list(devices))
            elif devices[device_name].entry_sha256 != entry_sha256(entry):
                log.info(
                    "batches measured with another catalogue entry", model=model, fix=f"polyreel bench batch {model}"
                )
            else:
                measured[model] = devices[device_name].sizes
        return cls(measured)

    def limits(self) -> dict[str, SizedBatches]:
        """Return for each measured model how many jobs may share a call, for `polyreel.batching.batch_limit`."""
        return {model: self._limits(model, sizes) for model, sizes in self._measured.items()}

    def _limits(self, model: str, sizes: tuple[MeasuredSize, ...]) -> SizedBatches:
        most: dict[int, int] = {}
        for size in sizes:
            most[size.pixels] = min(size.batch_size, most.get(size.pixels, size.batch_size))
        return tuple((pixels, self.most(model, pixels, limit)) for pixels, limit in sorted(most.items()))

    def remember_split(self, model: str, pixels: int, smaller_b: int) -> None:
        """After a batch that had too little memory: jobs of this size and larger come at most `smaller_b` together.

        Forgotten after an hour.
        """
        self._splits.setdefault(model, {})[pixels] = (self.most(model, pixels, smaller_b), self._clock())

    def most(self, model: str, pixels: int, wanted: int) -> int:
        """Return how many of `wanted` jobs of a size to run together, after what ran out of memory lately."""
        return min([wanted, *(most for smaller, most in self._splits_of(model).items() if smaller <= pixels)])

    def fitting(self, model: str, pixels: int, wanted: int, free_bytes: int) -> int:
        """Return how many of `wanted` jobs of a size fit into memory together, as far as was measured; 1 or more.

        Args:
            free_bytes: of the device, with the model loaded.
        """
        larger = [size for size in self._measured.get(model, ()) if size.pixels >= pixels]
        if not larger:
            return wanted
        runs = min(larger, key=lambda size: size.pixels).runs
        fits = [run.batch_size for run in runs if run.peak_bytes is None or run.peak_bytes <= free_bytes]
        return min(wanted, max(fits, default=1))

    def _splits_of(self, model: str) -> dict[int, int]:
        """Return what is remembered of a model: pixels to most jobs."""
        since = self._clock() - _REMEMBERED_S
        fresh = {pixels: split for pixels, split in self._splits.get(model, {}).items() if split[1] > since}
        self._splits[model] = fresh
        return {pixels: most for pixels, (most, _) in fresh.items()}


def read(path: Path) -> _File:
    """Return what a file says; an empty one where it is missing or damaged, which is logged."""
    try:
        return _File.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _File()
    except (OSError, ValidationError) as err:
        log.warning("batch sizes not read", path=str(path), reason=str(err), fix="delete the file and measure again")
        return _File()


def store(path: Path, model: str, entry: ServedModel, device_name: str, sizes: tuple[MeasuredSize, ...]) -> None:
    """Write what was measured beside what the file holds, in one step; another entry's measurement is replaced.

    Args:
        sizes: take the place of those of the same frames, height and width.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two GPUs of a machine may be measured at once
        models = {name: dict(devices) for name, devices in read(path).models.items()}
        digest = entry_sha256(entry)
        before = models.setdefault(model, {}).get(device_name)
        kept = {_key(size): size for size in before.sizes} if before and before.entry_sha256 == digest else {}
        kept |= {_key(size): size for size in sizes}
        ordered = tuple(sorted(kept.values(), key=lambda size: (size.pixels, _key(size))))
        models[model][device_name] = _Measured(entry_sha256=digest, sizes=ordered)
        part = path.with_name(f".{path.name}.part")
        with part.open("w") as file:
            file.write(_File(models=models).model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def _key(size: MeasuredSize) -> tuple[int, int, int]:
    return size.num_frames, size.height, size.width
