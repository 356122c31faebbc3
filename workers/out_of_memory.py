"""After out of memory: how the same job is tried again with less, and what its client is told when nothing helps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from polyreel.admission import RESERVED_BYTES, Size, needed_bytes, passes, what_fits
from polyreel.entries import Placement, ServedModel
from polyreel.errors import OutOfMemory
from polyreel.request import VideoRequest

#: The placement that takes less than each, at the price of speed. The pixels stay the same.
_NEXT_MODE = {"auto": "cpu_offload", "resident": "cpu_offload", "cpu_offload": "group_offload"}

#: How long a job that ran out of memory is held against the next one as large: other programs come and go on a device.
_REMEMBERED_S = 3600


class Ladder:
    """What one job is tried with after out of memory, each rung once, the fastest first.

    First the other models in memory go. Out of memory while decoding is then answered by decoding in tiles, which
    changes the pixels slightly. Then the weights move off the device: one component at a time, then layer by layer.
    At other stages tiles come after that: they help where the VAE encodes pictures, or frames for a second pass, and
    the pixels should not change where anything else would do. Nothing is encoded while a model loads.

    Args:
        usual: the placement of the model's entry; its `retry_with_less` says whether there is a ladder at all.

    Attributes:
        placement: what to load the model with; None is its usual placement.
        rungs: what each further try did, in order: "alone", "vae_tiling", "cpu_offload", "group_offload".
    """

    def __init__(self, usual: Placement, placement: Placement | None = None, rungs: tuple[str, ...] = ()) -> None:
        self.placement = placement
        self.rungs = list(rungs)
        self._used = placement or usual

    def stands_on(self, placement: Placement) -> None:
        """Say what the model was really loaded with, "auto" decided."""
        self._used = placement

    def step_down(self, stage: str, *, others: bool) -> bool:
        """Choose what to try next after out of memory at `stage`; False when nothing is left.

        Args:
            others: whether other models are in memory that may go.
        """
        used = self._used
        if not used.retry_with_less:
            return False
        mode = _NEXT_MODE.get(used.mode)
        if others and "alone" not in self.rungs:
            self.rungs.append("alone")
            return True
        if not used.vae_tiling and (stage == "decoding" or (not mode and stage != "load")):
            self.placement = used.model_copy(update={"vae_tiling": True})
            self.rungs.append("vae_tiling")
        elif mode:
            self.placement = used.model_copy(update={"mode": mode})
            self.rungs.append(mode)
        else:
            return False
        self._used = self.placement
        return True


@dataclass(frozen=True)
class _Needed:
    """A place on the ladder to which a job had to go, and the smallest job that had to lately."""

    placement: Placement | None
    pixels: int
    since: float


class Ladders:
    """Where jobs came down to on their ladders, so that the next one as large begins there.

    Every rung costs a load and often most of the denoising; without this, each job of a size that does not fit would
    pay for all of them. One per worker, forgotten after an hour.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._needed: dict[str, dict[tuple[str, ...], _Needed]] = {}  # model to rungs to what needed them

    def begin(self, request: VideoRequest, usual: Placement) -> Ladder:
        """Return the ladder of a job, on the lowest place that a job no larger than this one needed.

        Args:
            usual: as for `Ladder`.
        """
        since = self._clock() - _REMEMBERED_S
        needed = {rungs: one for rungs, one in self._needed.get(request.model, {}).items() if one.since > since}
        self._needed[request.model] = needed
        reached = [rungs for rungs, one in needed.items() if one.pixels <= _pixels(request)]
        if not reached:
            return Ladder(usual)
        lowest = max(reached, key=len)
        return Ladder(usual, needed[lowest].placement, lowest)

    def came_down(self, request: VideoRequest, stage: str, ladder: Ladder) -> None:
        """Remember where a job's ladder stands now that it ran out of memory at `stage`."""
        needed = self._needed.setdefault(request.model, {})
        pixels = 0 if stage == "load" else _pixels(request)  # a model takes as much for any job while it loads
        before = needed.get(tuple(ladder.rungs))
        if before is not None:
            pixels = min(pixels, before.pixels)
        needed[tuple(ladder.rungs)] = _Needed(ladder.placement, pixels, self._clock())


def _pixels(request: VideoRequest) -> int:
    """Return the pixels of a request's largest pass; for one model, memory grows with them."""
    return max(size.num_frames * size.height * size.width for size in passes(request))


def explained(
    error: OutOfMemory, entry: ServedModel, request: VideoRequest, memory: tuple[int, int] | None
) -> OutOfMemory:
    """Return the error with what the client can do about it.

    Args:
        memory: of this worker's device, free and in all, bytes; None when it is not counted.
    """
    *_, size = passes(request)
    first = Size(request.num_frames, request.height, request.width)
    upscaled = f", upscaled to {size.width}x{size.height}" if request.upscale else ""
    needed = needed_bytes(entry, request)
    if needed and memory and needed > memory[1] - RESERVED_BYTES:
        advice = what_fits(entry, request, memory[1])
    else:  # nothing is known of this model, or by the estimate it should have fitted: no number would be true
        advice = "Ask for fewer frames or a smaller size."
    message = f"The GPU has too little memory for {first}{upscaled} (it ran out at: {error.stage}). {advice}"
    found = OutOfMemory(message, error.stage)
    found.__cause__ = error.__cause__
    return found
