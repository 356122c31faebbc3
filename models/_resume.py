"""Long jobs go on where an earlier attempt was interrupted, and end with the same bytes as if it had not been.

Every few steps the state of the call in progress is saved: its latents, the step, the generator, and all of its
scheduler but the configuration (UniPC looks back at two outputs). A resumed job calls every pipeline as it would
anyway: the prompts and pictures are encoded, the noise is drawn. The first step runs too, and then

1. its result is replaced by the saved latents, and the generator and the scheduler by what they were;
2. the pipeline passes over the other steps that are done (diffusers' own `interrupt`, for as many steps);
3. it goes on with the step after the saved one, which has the number and the timesteps that it always had.

So a resume costs one step, and whatever a pipeline works out before its loop or in its first step is as it was. That
is why the saved latents are not simply given as `latents`: LTXConditionPipeline keeps the first latents to noise its
pictures with at every step, LTX2Pipeline splits the prompts in its first step, and AnimateDiff scales what it is given.

A pass that was finished is not denoised again either: its last latents are kept for as long as the job goes on, and a
resume in the second pass makes the first one's frames from them, at the cost of one step and one decoding.

Which state is a job's own, `models._identity` says. What cannot be resumed (`Resume.not_resumable`): models with a step
cache, which remember outputs of the denoiser; FreeInit, which denoises several times in one call; schedulers that keep
what is no plain value, such as a noise sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog

from models import Pipeline, PreparedRequest, Snapshots
from models._around import Tensor
from models._copied_scheduler import CopiedScheduler, attributes
from models._identity import identity
from models._snapshot import NotPlain, Tree, Unreadable, copied, pack, unpack
from models.loaded import LoadedModel

log = structlog.get_logger()


@dataclass(frozen=True)
class _State:
    """How far one call of a pipeline is.

    Args:
        steps: that are done.
        latents: as the next step takes them.
        generator: of the request, uint8.
        scheduler: its attributes.
        side_latents, side_scheduler: of a `CopiedScheduler`, None without one.
    """

    steps: int
    latents: Tensor
    generator: Tensor
    scheduler: Tree
    side_latents: Tensor = None
    side_scheduler: Tree = None


class _Passing:
    """True for as often as it is asked as steps are to be passed over; diffusers asks `interrupt` once before each."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def __bool__(self) -> bool:
        self._steps -= 1
        return self._steps >= 0


class Call:
    """One call of a pipeline with steps, resumed or from its start.

    Args:
        resume: of the job.
        generator: of the request.
        side: see `CopiedScheduler`.
        start: how far an earlier attempt came with this call, None to begin.
    """

    def __init__(self, resume: Resume, generator: Any, side: CopiedScheduler | None, start: _State | None) -> None:
        self._resume = resume
        self._generator = generator
        self._side = side
        self._start = start
        self._pipeline: Pipeline = None
        if start is not None and side is not None:
            side.go_on_after_the_first_step(start.side_latents, start.side_scheduler)

    def go_on(self, pipeline: Pipeline) -> dict[str, Tensor] | None:
        """Return the latents to go on with; None when the step that was just taken is one that counts.

        To be asked after each step.
        """
        start, self._start = self._start, None
        if start is None:
            return None
        self._generator.set_state(start.generator)
        pipeline.scheduler.__dict__.update(start.scheduler)
        self._pipeline = pipeline
        pipeline._interrupt = _Passing(start.steps - 1)
        if start.steps == pipeline.num_timesteps:  # none is left in which `took` could see its end
            self._resume.ended(copied(vars(start)))
        return {"latents": start.latents}

    def took(self, pipeline: Pipeline, step: int, latents: Tensor) -> None:
        """Note that a step was taken, and save it if it is time.

        Args:
            step: of this call, from 0.
            latents: after it.
        """
        resume = self._resume
        if resume.not_resumable:
            return
        resume.steps_done += 1
        ends = step + 1 == pipeline.num_timesteps
        due = resume.is_due()
        if not due and not ends:
            return
        try:
            state = copied(vars(self._state(pipeline, step + 1, latents)))
        except NotPlain as err:
            resume.give_up(f"{type(pipeline.scheduler).__name__}: {err}")
            return
        if due:
            resume.save(state)
        if ends:
            resume.ended(state)

    def end(self) -> None:
        """Leave the pipeline as it was, however its call ended."""
        if self._pipeline is not None:
            self._pipeline._interrupt = False

    def _state(self, pipeline: Pipeline, steps: int, latents: Tensor) -> _State:
        side = self._side
        if side is not None and side.latents is None:
            raise NotPlain("the sound has a scheduler of its own")
        return _State(
            steps,
            latents,
            generator=self._generator.get_state(),
            scheduler=attributes(pipeline.scheduler),
            side_latents=side.latents if side else None,
            side_scheduler=attributes(side.scheduler) if side else None,
        )


class Resume:
    """What one job saves on its way, and where it goes on.

    Serialising takes a thread of its own, which is done when `close` returns; it never holds up a step. If it cannot
    keep up with the steps, the newest state wins.

    Args:
        model, prepared: the job.
        snapshots: where its states go.
        not_resumable: why nothing is to be saved; "" when it is.

    Attributes:
        resumed_from: steps of an earlier attempt that are not taken again.
        steps_done: of the job, these among them.
        not_resumable: why nothing is saved, "" while it is.
    """

    def __init__(
        self, model: LoadedModel, prepared: PreparedRequest, snapshots: Snapshots, not_resumable: str = ""
    ) -> None:
        self.not_resumable = not_resumable
        self._snapshots = snapshots
        self._identity = "" if not_resumable else identity(model, prepared)
        self._starts = [] if not_resumable else self._read(model.device)
        self.resumed_from = self.steps_done = self._saved_at = sum(start.steps for start in self._starts)
        self._ended: list[Tree] = []  # of the calls that are over
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._waiting: Future[None] | None = None
        if self._starts:
            log.info("goes on where an earlier attempt was", step=self.resumed_from)

    def begin(self, generators: Sequence[Any], side: CopiedScheduler | None) -> Call | None:
        """Return the watch over the next call with steps; None when nothing is to be saved."""
        if self.not_resumable:
            return None
        [generator] = generators
        return Call(self, generator, side, self._starts.pop(0) if self._starts else None)

    def is_due(self) -> bool:
        """Return whether it is time to save."""
        return not self.not_resumable and self.steps_done - self._saved_at >= self._snapshots.every

    def save(self, state: Tree) -> None:
        """Save how far the call in progress is, beside what is left of those before; returns at once."""
        self._saved_at = self.steps_done
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self._writer.submit(self._write, [*self._ended, state], self.steps_done)

    def ended(self, state: Tree) -> None:
        """Keep what is needed of a call that took its last step."""
        self._ended.append({**state, "scheduler": {}, "side_scheduler": {}})  # it takes no step again

    def give_up(self, why: str) -> None:
        """Save nothing from now on."""
        self.not_resumable = why
        log.warning("job cannot be resumed", reason=why)

    def close(self) -> None:
        """End; everything that was to be saved has been handed on then."""
        self._writer.shutdown()

    def _write(self, states: list[Tree], step: int) -> None:
        try:
            self._snapshots.save(pack(self._identity, states), step)
        except Exception:  # the job is worth more than its snapshot
            log.exception("snapshot not saved", step=step)

    def _read(self, device: str) -> list[_State]:
        """Return what an earlier attempt saved, call by call; nothing when it is none of this job's."""
        if self._snapshots.state is None:
            return []
        try:
            saved_identity, tree = unpack(self._snapshots.state, device)
            if saved_identity != self._identity:
                raise Unreadable("it is of another request, model, device or version")
            return [_State(**state) for state in tree]
        except Unreadable as err:
            log.warning("snapshot ignored, the job starts over", reason=str(err))
            return []
