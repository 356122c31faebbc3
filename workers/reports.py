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
from polyreel.records import Records, redis_errors
from workers.keeping import Keeping

log = structlog.get_logger()

#: How long no report is tried after one that did not arrive, seconds: each try holds the pipeline for up to 2.5 s.
_SKIP_S = 10.0

#: Percent of a job's progress at which denoising begins and ends; it fills its span step by step.
GENERATE, ENCODE, STORE = 5, 85, 95


class Reports:
    """The progress of one call over the jobs that share it.

    Args:
        records: with a client that gives up soon.
        keeping: knows which jobs were lost while nothing could be asked.
        worker: name of this worker.
        claims: the jobs.

    Attributes:
        dropped: claims that nobody wants from us any more; what is made of them is not to be kept.
    """

    def __init__(self, records: Records, keeping: Keeping, worker: str, claims: Sequence[Claim]) -> None:
        self.dropped: set[Claim] = set()
        self._records = records
        self._keeping = keeping
        self._worker = worker
        self._claims = claims
        self._not_before = 0.0

    def start(self) -> None:
        """Say that the model is in memory; as `step`."""
        self._report(progress=GENERATE, stage="")

    def step(self, progress: Progress) -> None:
        """Report a step.

        Raises:
            Cancelled: every one of the jobs was cancelled, or belongs to somebody else now.
        """
        self._report(
            stage=progress.stage,
            step=progress.step,
            total_steps=progress.total_steps,
            progress=int(GENERATE + (ENCODE - GENERATE) * progress.share),
        )

    def _report(self, **fields: object) -> None:
        self.dropped |= self._keeping.lost & set(self._claims)
        wanted = [claim for claim in self._claims if claim not in self.dropped]
        if wanted and time.monotonic() >= self._not_before:
            try:
                with redis_errors():
                    said = self._records.advance_all(
                        [(claim.job_id, claim.fence) for claim in wanted], JobStatus.RUNNING, self._worker, **fields
                    )
            except QueueUnavailable as err:
                log.warning("progress not reported", reason=err.message)
                self._not_before = time.monotonic() + _SKIP_S
            else:
                self.dropped |= {claim for claim, is_ours in zip(wanted, said, strict=True) if not is_ours}
        if self.dropped >= set(self._claims):
            raise Cancelled("The job ended, or belongs to another worker now.")
