"""Tells the record how far a pipeline call is, and hears from it whether anybody still wants the video.

A step must not wait for Redis: while it is away, reports are left out, and the call goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from models import Progress
from polyreel.errors import Cancelled, QueueUnavailable
from polyreel.job import JobStatus
from polyreel.leases import Claim
from polyreel.previews import Preview, preview_text
from polyreel.records import Records, redis_errors
from polyreel.tracing import Stretch
from workers.failures import is_device_error, is_timeout
from workers.keeping import Keeping
from workers.preview_files import jpeg

log = structlog.get_logger()

#: How long no report is tried after one that did not arrive, seconds: each try holds the pipeline for up to 2.5 s.
_SKIP_S = 10.0

#: Seconds between two pictures of a job at least; a step in between costs nothing more.
_SHOW_S = 0.5

#: Percent of a job's progress at which denoising begins and ends; it fills its span step by step.
GENERATE, ENCODE, STORE = 5, 85, 95


class Reports:
    """The progress of one call over the jobs that share it.

    Args:
        records: with a client that gives up soon.
        keeping: knows which jobs were lost while nothing could be asked.
        worker: name of this worker.
        claims: the jobs.
        shows: show pictures of them.

    Attributes:
        dropped: claims that nobody wants from us any more; what is made of them is not to be kept.
        in_call: those whose requests are in the call, in the order in which the models know them; all, until less.
    """

    def __init__(
        self,
        records: Records,
        keeping: Keeping,
        worker: str,
        claims: Sequence[Claim],
        *,
        shows: bool = False,
    ) -> None:
        self.dropped: set[Claim] = set()
        self.in_call = claims
        self._records = records
        self._keeping = keeping
        self._worker = worker
        self._claims = claims
        self._shows = shows
        self._not_before = 0.0
        self._show_not_before = 0.0
        self._stages: list[tuple[str, float]] = []

    def start(self) -> None:
        """Say that the model is in memory; as `step`."""
        self._enter("text_encoding")  # with which every family begins
        self._report(progress=GENERATE, stage="")

    def step(self, progress: Progress) -> None:
        """Report a step.

        Raises:
            Cancelled: every one of the jobs was cancelled, or belongs to somebody else now.
        """
        self._enter(progress.stage)
        self._report(
            progress,
            stage=progress.stage,
            step=progress.step,
            total_steps=progress.total_steps,
            progress=int(GENERATE + (ENCODE - GENERATE) * progress.share),
        )

    def _enter(self, stage: str) -> None:
        if not self._stages or self._stages[-1][0] != stage:
            self._stages.append((stage, time.time()))

    def stretches(self) -> list[Stretch]:
        """Return when the call was in which stage, the last of them until now."""
        ends = [*(began for _, began in self._stages[1:]), time.time()]
        return [Stretch(stage, began, ended) for (stage, began), ended in zip(self._stages, ends, strict=False)]

    def _previews_of(self, wanted: Sequence[Claim], progress: Progress) -> dict[str, str]:
        """Return pictures of jobs by id, as they are kept; none before it is time."""
        if not self._shows or time.monotonic() < self._show_not_before:
            return {}
        try:
            made = progress.pictures()
        except Exception as err:  # a job is worth more than its picture
            if is_timeout(err) or is_device_error(err):
                raise
            log.exception("no previews of this job")
            self._shows = False
            return {}
        self._show_not_before = time.monotonic() + (_SHOW_S if made else 0)
        return {
            claim.job_id: preview_text(Preview(jpeg(made[n]), progress.step))
            for n, claim in enumerate(self.in_call)
            if n in made and claim in wanted
        }

    def _report(self, told: Progress | None = None, **fields: object) -> None:
        self.dropped |= self._keeping.lost & set(self._claims)
        wanted = [claim for claim in self._claims if claim not in self.dropped]
        if wanted and time.monotonic() >= self._not_before:
            previews = self._previews_of(wanted, told) if told else {}
            try:
                with redis_errors():
                    said = self._records.advance_all(
                        [(claim.job_id, claim.fence) for claim in wanted],
                        JobStatus.RUNNING,
                        self._worker,
                        previews=previews,
                        **fields,
                    )
            except QueueUnavailable as err:
                log.warning("progress not reported", reason=err.message)
                self._not_before = time.monotonic() + _SKIP_S
            else:
                self.dropped |= {claim for claim, is_ours in zip(wanted, said, strict=True) if not is_ours}
        if self.dropped >= set(self._claims):
            raise Cancelled("The job ended, or belongs to another worker now.")
