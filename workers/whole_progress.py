"""Shows several calls of `Family.generate` to their caller as one: what was begun again never goes backwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models import OnProgress, Progress
from workers.memory import chain


class WholeProgress:
    """The progress of some jobs, however often and in whatever parts they have to be run.

    Every call fills its jobs' part of what is left when it begins. One that goes through at once looks as it is.

    Args:
        on_start: called when the model is in memory, and before and after it is loaded with another placement.
        on_progress: called with each change; `share` and `step` never decrease, `total_steps` stays that of the first.
        jobs: how many there are, 1 or more.
    """

    def __init__(self, on_start: Callable[[], None], on_progress: OnProgress, jobs: int) -> None:
        self._is_started = False
        self._on_start = on_start
        self._on_progress = on_progress
        self._jobs = self._left = jobs
        self._share = 0.0
        self._step = 0
        self._total_steps = 0
        self._stop: BaseException | None = None

    def loaded(self) -> None:
        """Say that the model is in memory; of no interest where it was when the caller was told last."""
        if not self._is_started:
            self._is_started = True
            self._call(self._on_start)

    def loads_again(self) -> None:
        """Say that the model is about to be loaded with another placement."""
        self._is_started = False
        self._call(self._on_start)

    def of(self, jobs: int) -> OnProgress:
        """Return what to give to a call for so many of the jobs that are left."""
        part = jobs / self._left
        share, step, first = self._share, self._step, self._jobs - self._left

        def tell(progress: Progress) -> None:
            self._total_steps = self._total_steps or progress.total_steps
            steps_done = progress.step / max(1, progress.total_steps)
            self._share = max(self._share, share + (1 - share) * part * progress.share)
            self._step = max(self._step, step + round((self._total_steps - step) * part * steps_done))

            def pictures() -> dict[int, np.ndarray]:
                return {first + number: picture for number, picture in progress.pictures().items()}

            told = Progress(progress.stage, self._step, self._total_steps, self._share, pictures)
            self._call(lambda: self._on_progress(told))

        return tell

    def done(self, jobs: int) -> None:
        """Note that so many jobs have ended, well or not."""
        self._left -= jobs

    def is_stopped_by(self, err: BaseException) -> bool:
        """Return whether an error is what the caller raised when it was told something: no job is to blame."""
        return self._stop is not None and any(link is self._stop for link in chain(err))

    def _call(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except BaseException as err:
            self._stop = err
            raise
