"""Counts the steps of a whole call of `Family.generate`, times its stages, and tells both to the caller."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

from models import OnProgress, Pictures, Progress, Stage, no_pictures

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from models._resume import Resume

#: Share of a whole call at which denoising begins and at which the last decoding begins. Rough: on the published
#: checkpoints text takes a second or less, and decoding 2 to 15 % (docs/models.md).
_DENOISING, _DECODING = 0.02, 0.9


class Meter:
    """The progress of one call of `Family.generate`, over all its passes.

    Args:
        on_progress: told of every change; what it raises goes up through the pipeline.
        total_steps: denoising steps of all passes, 1 or more.
        resume: saves its state on the way, and says where it goes on; None begins and saves nothing.
    """

    def __init__(self, on_progress: OnProgress, total_steps: int, resume: Resume | None = None) -> None:
        self.total_steps = total_steps
        self.steps_done = resume.resumed_from if resume else 0
        self.resume = resume
        #: How many requests of the call were run before the batch in progress.
        self.requests_done = 0
        self.stage: Stage = "text_encoding"
        #: Seconds per stage so far.
        self.seconds: dict[str, float] = defaultdict(float)
        self._on_progress = on_progress
        self._since = time.monotonic()
        self._share = self._denoised() if self.steps_done else 0.0

    def enter(self, stage: Stage) -> None:
        """Begin a stage; entering the present one again changes nothing."""
        if stage != self.stage:
            self._charge()
            self.stage = stage
            self._tell(self._share)

    def step(self, pictures: Callable[[], list[np.ndarray]] = list) -> None:
        """Count a denoising step that is done.

        Args:
            pictures: gives one for each sample of the batch, or none.
        """
        self.enter("denoising")
        self.steps_done += 1
        self._tell(self._denoised(), lambda: dict(enumerate(pictures(), self.requests_done)))

    def tick(self) -> None:
        """Say that work goes on where there is nothing to count, so that it can be cancelled."""
        self._tell(self._share)

    def decoded(self, share: float) -> None:
        """Tell how much of a decoding is done, 0..1; only the last pass's counts for the share of the whole call."""
        self.enter("decoding")
        is_last = self.steps_done >= self.total_steps
        self._tell(_DECODING + (1 - _DECODING) * min(share, 1.0) if is_last else self._share)

    def take_seconds(self) -> dict[str, float]:
        """Return the seconds per stage since the last time this was asked."""
        self._charge()
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds

    def _denoised(self) -> float:
        """Return the share of the whole call that is done after so many steps."""
        return _DENOISING + (_DECODING - _DENOISING) * self.steps_done / self.total_steps

    def _charge(self) -> None:
        now = time.monotonic()
        self.seconds[self.stage] += now - self._since
        self._since = now

    def _tell(self, share: float, pictures: Pictures = no_pictures) -> None:
        self._share = max(self._share, share)
        self._on_progress(Progress(self.stage, self.steps_done, self.total_steps, self._share, pictures))
