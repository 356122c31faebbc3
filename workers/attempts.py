"""Makes a request's video with the model in memory; tries again with less when memory runs out, then checks itself.

The record, the queue and the files of the job are not known here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from models import OnProgress, PreparedRequest, Video
from models.loaded import LoadedModel
from polyreel.errors import CheckpointUnavailable, OutOfMemory
from workers.failures import as_out_of_memory, is_device_error, is_models_own
from workers.memory import device_memory, free_memory, let_go
from workers.out_of_memory import Ladder, Ladders, explained
from workers.receipt import receipt
from workers.residency import Residency
from workers.self_check import Fitness, check_device, check_model

log = structlog.get_logger()


class Attempts:
    """Runs requests one after the other on the models of this process.

    Args:
        residency: the pipelines.

    Attributes:
        fitness: whether this process may take another job.
        unavailable: catalogue names of models that do not load, with the reason; replaced as a whole, never changed,
            because the heartbeat reads it from its thread.
    """

    def __init__(self, residency: Residency) -> None:
        self.residency = residency
        self.fitness = Fitness()
        self.unavailable: dict[str, str] = {}
        self._ladders = Ladders()

    def make(
        self,
        prepared: PreparedRequest,
        on_start: Callable[[], None],
        on_progress: OnProgress,
        timings: dict[str, float],
    ) -> tuple[Video, dict[str, Any]]:
        """Return the video and its receipt, plain JSON; "after_out_of_memory" in it says by which rungs it was made.

        They are rungs that this job came down, or an earlier one no larger than it; see `Ladders`.

        Args:
            on_start: called whenever the model is in memory and before it is loaded with another placement; may raise
                `Cancelled`.
            on_progress: as for `Family.generate`.
            timings: "load" and "generate" are added, seconds; what an attempt spent that failed is not.

        Raises:
            OutOfMemory: on every rung of the ladder; the message is for the client.
            PolyreelError: what `Residency.get` and `Family.generate` raise.
        """
        request = prepared.request
        entry = self.residency.catalogue[request.model]
        ladder = self._ladders.begin(request, entry.placement)
        while True:
            if "alone" in ladder.rungs:
                for other in self._others(request.model):
                    self.residency.unload(other)
            try:
                video, facts = self._attempt(prepared, ladder, on_start, on_progress, timings)
                break
            except Exception as err:
                trouble = as_out_of_memory(err)
                if trouble is None:
                    raise
                log.warning("out of memory", stage=trouble.stage, rungs=ladder.rungs, reason=str(trouble.__cause__))
                let_go(err)
            # Outside of the handler: until then the error keeps what it failed over alive.
            free_memory()
            if not ladder.step_down(trouble.stage, others=bool(self._others(request.model))):
                raise explained(trouble, entry, request, device_memory(self.residency.device))
            self._ladders.came_down(request, trouble.stage, ladder)
            on_start()  # a cancelled job is not worth another load
        return video, {**facts, "after_out_of_memory": ladder.rungs} if ladder.rungs else facts

    def _attempt(
        self,
        prepared: PreparedRequest,
        ladder: Ladder,
        on_start: Callable[[], None],
        on_progress: OnProgress,
        timings: dict[str, float],
    ) -> tuple[Video, dict[str, Any]]:
        name = prepared.request.model
        with timed(timings, "load"):
            model = self._load(name, ladder)
        ladder.stands_on(model.placement)
        on_start()
        with timed(timings, "generate"):
            [video] = self.residency.family(name).generate(model, [prepared], on_progress)
        return video, receipt(prepared, video, model)

    def _load(self, name: str, ladder: Ladder) -> LoadedModel:
        try:
            model = self.residency.get(name, ladder.placement)
        except CheckpointUnavailable as err:
            if is_models_own(err):
                self.unavailable = {**self.unavailable, name: err.message}
            raise
        self.unavailable = {other: reason for other, reason in self.unavailable.items() if other != name}
        return model

    def _others(self, name: str) -> list[str]:
        """Return the other models in memory that may go."""
        return [o for o in self.residency.loaded if o != name and not self.residency.catalogue[o].pinned]

    def recover(self, name: str, err: BaseException) -> None:
        """Clear memory after a job of model `name` failed with `err`; find out whether the next job can run.

        After trouble with the device the device multiplies two small matrices, and the model, if it is in memory,
        makes its smallest video. A job that succeeded on a lower rung needs no such check: it was one.
        """
        free_memory()
        ran_out = isinstance(err, OutOfMemory)
        if not ran_out and not is_device_error(err):
            return
        try:
            check_device(self.residency.device)
            if name in self.residency.loaded:
                model = self.residency.get(name, self.residency.loaded_with(name))
                check_model(self.residency.family(name), model, self.residency.catalogue[name])
        except Exception as trouble:  # whatever it is, the next job would meet it
            self.fitness.unfit = f"the self-check failed with {type(trouble).__name__}"
            log.critical("self-check failed", exc_info=trouble)
            let_go(trouble)
            return
        log.info("self-check passed")
        if ran_out:
            self.fitness.job_ran_out_of_memory()


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds of what is done inside to those of a stage; an error adds nothing."""
    start = time.monotonic()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.monotonic() - start
