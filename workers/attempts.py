"""Makes videos with the model in memory, several in one call; tries again with less when memory runs out, then checks.

The records, the queue and the files of the jobs are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from traceback import clear_frames
from typing import Any

import structlog

from models import OnProgress, PreparedRequest, Snapshots, Video
from models.loaded import LoadedModel
from polyreel.batching import job_pixels
from polyreel.entries import Placement
from polyreel.errors import Cancelled, CheckpointUnavailable, OutOfMemory
from workers.batch_sizes import BatchSizes
from workers.failures import as_out_of_memory, is_device_error, is_device_lost, is_models_own, is_timeout
from workers.memory import chain, device_memory, free_memory, let_go
from workers.out_of_memory import Ladder, Ladders, explained
from workers.receipt import receipt
from workers.residency import Residency
from workers.self_check import Fitness, check_device, check_model
from workers.trail import timed
from workers.whole_progress import WholeProgress

log = structlog.get_logger()


#: A job's video and its receipt, plain JSON.
Made = tuple[Video, dict[str, Any]]


class Attempts:
    """Runs requests on the models of this process, several in one call where that is given.

    Args:
        residency: the pipelines.
        batch_sizes: what was measured here; None knows nothing, and only learns from batches that ran out of memory.

    Attributes:
        fitness: whether this process may take another job.
        unavailable: catalogue names of models that do not load, with the reason; replaced as a whole, never changed,
            because the heartbeat reads it from its thread.
    """

    def __init__(self, residency: Residency, batch_sizes: BatchSizes | None = None) -> None:
        self.residency = residency
        self.batch_sizes = batch_sizes or BatchSizes()
        self.fitness = Fitness()
        self.unavailable: dict[str, str] = {}
        self._ladders = Ladders()

    def make(
        self,
        prepared: PreparedRequest,
        on_start: Callable[[], None],
        on_progress: OnProgress,
        timings: dict[str, float],
    ) -> Made:
        """Return the video and the receipt of one request; see `make_all`.

        Raises:
            OutOfMemory: on every rung of the ladder; the message is for the client.
            PolyreelError: what `Residency.get` and `Family.generate` raise.
        """
        [made] = self.make_all([prepared], on_start, on_progress, timings)
        if isinstance(made, Exception):
            raise made
        return made

    def make_all(
        self,
        prepared: Sequence[PreparedRequest],
        on_start: Callable[[], None],
        on_progress: OnProgress,
        timings: dict[str, float],
        snapshots: Snapshots | None = None,
    ) -> list[Made | Exception]:
        """Return each request's video and receipt, or why it has none, in order.

        They run in one call. What runs out of memory is split in halves, and a batch that fails otherwise is run again
        one by one, so that only the request that is to blame fails, with its own error. One by itself is tried again
        with less after out of memory; "after_out_of_memory" in its receipt says by which rungs it was made, which are
        those that it came down, or an earlier job no larger than it; see `Ladders`. "batch_size" in a receipt says how
        many were given to the family in one call, where it was more than one.

        Args:
            prepared: one or more, of one model; several that may share a call, see `polyreel.batching`.
            on_start: called when the model is in memory, and before and after it is loaded with another placement;
                may raise `Cancelled`.
            on_progress: as for `Family.generate`, over all of them and all runs; what it raises ends them all.
            timings: "load" and "generate" are added, seconds over all of them; what a run spent that failed is not.
            snapshots: for `Family.generate`; of one request alone.

        Raises:
            Cancelled: or whatever else `on_start` and `on_progress` raise.
            JobTimeoutException: RQ's time limit struck; perhaps only as the cause of another error.
            Exception: the device is lost, see `workers.failures.is_device_lost`.
            ValueError: no request, several models, or snapshots of several requests.
        """
        models = sorted({one.request.model for one in prepared})
        if len(models) != 1 or (snapshots is not None and len(prepared) > 1):
            raise ValueError(
                f"make_all takes requests of one model, and snapshots with one request alone; got {len(prepared)} "
                f"requests of {models}, {'without' if snapshots is None else 'with'} snapshots"
            )
        whole = WholeProgress(on_start, on_progress, len(prepared))
        made: list[Made | Exception] = []
        alone_until = 0  # these failed together
        while len(made) < len(prepared):
            batch = self._together(prepared[len(made) :]) if len(made) >= alone_until else prepared[len(made) :][:1]
            ended: Sequence[Made | Exception] = []
            failure = None
            try:
                ended = self._run(batch, whole, timings, snapshots)
            except Exception as err:
                if isinstance(err, Cancelled) or whole.is_stopped_by(err) or is_timeout(err) or is_device_lost(err):
                    raise
                failure = err
            # Outside of the handler: until then the error keeps what it failed over alive.
            if failure is not None:
                next_size = self._next_size(failure, batch)
                if next_size:
                    let_go(failure)
                    free_memory()
                else:
                    forget_locals(failure)
                    ended = [failure] * len(batch)
                if next_size == 1:
                    alone_until = len(made) + len(batch)
            made += ended
            whole.done(len(ended))
        return made

    def _together(self, left: Sequence[PreparedRequest]) -> Sequence[PreparedRequest]:
        """Return the first of the requests that are left, as many as run together after what ran out of memory."""
        first = left[0].request
        return left[: self.batch_sizes.most(first.model, job_pixels(first), len(left))]

    def _next_size(self, failure: Exception, batch: Sequence[PreparedRequest]) -> int:
        """Return in what parts to run a batch again that failed; 0 when its requests have failed for good."""
        trouble = as_out_of_memory(failure)
        while_loading = isinstance(failure, CheckpointUnavailable) or (trouble is not None and trouble.stage == "load")
        if len(batch) == 1 or while_loading:  # a model that does not load fails all of them alike
            return 0
        request = batch[0].request
        if trouble is None:
            log.warning(
                "batch failed, its jobs run alone", batch_size=len(batch), exc_info=failure.__cause__ or failure
            )
            return 1
        half = (len(batch) + 1) // 2
        log.warning("batch ran out of memory", batch_size=len(batch), stage=trouble.stage, next_size=half)
        self.batch_sizes.remember_split(request.model, job_pixels(request), half)
        return half

    def _run(
        self,
        batch: Sequence[PreparedRequest],
        whole: WholeProgress,
        timings: dict[str, float],
        snapshots: Snapshots | None,
    ) -> list[Made]:
        """Run requests in one call, again with less where memory runs out and the size of the batch is not to blame.

        Returns:
            What was made, of at least the first request: fewer than given where no more fit into memory.
        """
        request = batch[0].request
        entry = self.residency.catalogue[request.model]
        ladder = self._ladders.begin(request, entry.placement)
        while True:
            if "alone" in ladder.rungs:
                for other in self._others(request.model):
                    self.residency.unload(other)
            try:
                return self._attempt(batch, ladder, whole, timings, snapshots)
            except Exception as err:
                trouble = as_out_of_memory(err)
                if trouble is None or (len(batch) > 1 and trouble.stage != "load"):
                    raise
                log.warning("out of memory", stage=trouble.stage, rungs=ladder.rungs, reason=str(trouble.__cause__))
                let_go(err)
            # Outside of the handler: until then the error keeps what it failed over alive.
            free_memory()
            if not ladder.step_down(trouble.stage, others=bool(self._others(request.model))):
                raise explained(trouble, entry, request, device_memory(self.residency.device))
            self._ladders.came_down(request, trouble.stage, ladder)
            whole.loads_again()  # a cancelled job is not worth another load

    def _attempt(
        self,
        batch: Sequence[PreparedRequest],
        ladder: Ladder,
        whole: WholeProgress,
        timings: dict[str, float],
        snapshots: Snapshots | None,
    ) -> list[Made]:
        name = batch[0].request.model
        with timed(timings, "load"):
            model = self.load(name, ladder.placement)
        ladder.stands_on(model.placement)
        whole.loaded()
        batch = batch[: self._fitting(batch)]
        further = {} if snapshots is None else {"snapshots": snapshots}
        with timed(timings, "generate"):
            videos = self.residency.family(name).generate(model, batch, whole.of(len(batch)), **further)
        rungs = {"after_out_of_memory": ladder.rungs} if ladder.rungs else {}
        return [
            (video, receipt(one, video, model, batch_size=len(batch)) | rungs)
            for one, video in zip(batch, videos, strict=True)
        ]

    def _fitting(self, batch: Sequence[PreparedRequest]) -> int:
        """Return how many of a batch fit into what is free now, as far as was measured."""
        memory = device_memory(self.residency.device) if len(batch) > 1 else None
        if memory is None:
            return len(batch)
        name, pixels = batch[0].request.model, job_pixels(batch[0].request)
        fitting = self.batch_sizes.fitting(name, pixels, len(batch), memory[0])
        if fitting < len(batch):
            log.info("batch reduced to what fits", batch_size=len(batch), fitting=fitting, free_bytes=memory[0])
            self.batch_sizes.remember_split(name, pixels, fitting)
        return fitting

    def load(self, name: str, placement: Placement | None = None) -> LoadedModel:
        """Return a model in memory, and remember whether it loads; as `Residency.get`."""
        try:
            model = self.residency.get(name, placement)
        except CheckpointUnavailable as err:
            if is_models_own(err):
                self.unavailable = {**self.unavailable, name: err.message}
            raise
        self.unavailable = {other: reason for other, reason in self.unavailable.items() if other != name}
        return model

    def _others(self, name: str) -> list[str]:
        """Return the other models in memory that may go."""
        return [o for o in self.residency.loaded if o != name and o not in self.residency.pinned]

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


def forget_locals(err: BaseException) -> None:
    """Drop what the frames of an error and its causes held: tensors of the failed call. Its traceback still prints."""
    for link in chain(err):
        if link.__traceback__ is not None:
            clear_frames(link.__traceback__)
    if err.__traceback__ is not None:  # less the frame that caught it, which goes on and would be held
        err.__traceback__ = err.__traceback__.tb_next
