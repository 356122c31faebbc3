"""After out of memory: how the same job is tried again with less, and what its client is told when nothing helps."""

from __future__ import annotations

from polyreel.admission import RESERVED_BYTES, Size, needed_bytes, passes, what_fits
from polyreel.entries import Placement, ServedModel
from polyreel.errors import OutOfMemory
from polyreel.request import VideoRequest

#: The placement that takes less than each, at the price of speed. The pixels stay the same.
_NEXT_MODE = {"auto": "cpu_offload", "resident": "cpu_offload", "cpu_offload": "group_offload"}


class Ladder:
    """What one job is tried with after out of memory, each rung once, the fastest first.

    First the other models in memory go. Out of memory while decoding is then answered by decoding in tiles, which
    changes the pixels slightly; at any other stage tiles would not help. Then the weights move off the device: one
    component at a time, then layer by layer.

    Args:
        usual: the placement of the model's entry; its `retry_with_less` says whether there is a ladder at all.

    Attributes:
        placement: what to load the model with; None is its usual placement.
        rungs: what each further try did, in order: "alone", "vae_tiling", "cpu_offload", "group_offload".
    """

    def __init__(self, usual: Placement) -> None:
        self.placement: Placement | None = None
        self.rungs: list[str] = []
        self._used = usual

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
        if stage == "decoding" and not used.vae_tiling:
            self.placement = used.model_copy(update={"vae_tiling": True})
            self.rungs.append("vae_tiling")
        elif mode:
            self.placement = used.model_copy(update={"mode": mode})
            self.rungs.append(mode)
        else:
            return False
        self._used = self.placement
        return True


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
