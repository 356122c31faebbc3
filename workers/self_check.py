"""Whether this process is fit for the next job after its device ran out of memory, and how it ends when it is not.

An allocator that failed once may leave a process in which every further job fails. Such a worker must not take jobs:
it hands back what it has and ends, and whoever supervises it starts another.
"""

from __future__ import annotations

import numpy as np

from models import Family, PreparedRequest, Progress
from models.loaded import LoadedModel
from polyreel.entries import MIN_SIDE, ServedModel
from polyreel.request import ImageCondition, PromptSpan, VideoRequest

#: Exit code of a worker that is not fit for another job (EX_OSERR); a supervisor starts the next one at once.
UNFIT_EXIT = 71

#: So many jobs in a row without memory end the worker, even when each self-check passed.
MOST_IN_A_ROW = 3


class Fitness:
    """What this process knows of itself. One per worker.

    Attributes:
        unfit: why no further job must be taken, "" while all is well.
    """

    def __init__(self) -> None:
        self.unfit = ""
        self._in_a_row = 0

    def job_succeeded(self) -> None:
        """Note that a whole job ran: the strongest check there is."""
        self._in_a_row = 0

    def job_ran_out_of_memory(self) -> None:
        """Note a job that failed for want of memory."""
        self._in_a_row += 1
        if self._in_a_row >= MOST_IN_A_ROW:
            self.unfit = f"{self._in_a_row} jobs in a row ran out of memory"


def check_device(device: str) -> None:
    """Multiply two small matrices on the device.

    Raises:
        RuntimeError: wrong numbers came back; or whatever the device raises.
    """
    import torch

    ones = torch.ones(64, 64, device=device)
    if not bool((ones @ ones == 64).all()):
        raise RuntimeError(f"{device} multiplies wrongly.")


def check_model(family: Family, model: LoadedModel, entry: ServedModel) -> None:
    """Generate the smallest video that every family can: 9 frames of 64x64 in one step.

    Raises:
        Exception: whatever the family raises; the model is not fit for a job then.
    """
    family.generate(model, [smallest_request(entry)], _unwatched)


def smallest_request(entry: ServedModel) -> PreparedRequest:
    """Return a request that a loaded model answers in about a second."""
    request = VideoRequest(
        model="",
        prompts=(PromptSpan("", 9),),
        height=MIN_SIDE,
        width=MIN_SIDE,
        fps=8.0,
        num_inference_steps=1,
        guidance_scale=1.0,
        seed=0,
        outputs=(),
        images=() if "t2v" in entry.tasks else (ImageCondition("none"),),
    )
    grey = np.full((MIN_SIDE, MIN_SIDE, 3), 128, np.uint8)
    return PreparedRequest(request, images=(grey,) * len(request.images))


def _unwatched(progress: Progress) -> None:
    """Nobody waits for a self-check."""
