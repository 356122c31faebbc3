"""How the tests of the worker give jobs to a runner: claimed and kept as `polyreel worker` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyreel.job import VideoJob
from polyreel.leases import Claim, Wishes
from polyreel.queue import Queue
from polyreel.storage import Storage
from tests.core.jobs import queued
from workers.keeper import Setup
from workers.keeping import Keeping
from workers.residency import Residency
from workers.runner import JobRunner


def unkept(worker: str = "one") -> Keeping:
    """Return the bookkeeping of a worker without a keeper: its leases are long enough for a test."""
    return Keeping(Setup("", worker, 0, 60, 20), dict)


def runner_for(
    queue: Queue, residency: Residency, storage: Storage, scratch: Path, worker: str = "one", **options: Any
) -> JobRunner:
    """Return a runner whose leases nobody renews. Any: options of `JobRunner`."""
    return JobRunner(queue, queue.records, unkept(worker), residency, storage, scratch, worker, **options)


def take(runner: JobRunner, most: int = 1) -> list[Claim]:
    """Claim what a runner would run next, up to `most` jobs in one call."""
    models = list(runner.residency.catalogue.models)
    batches = {model: [(10**12, most)] for model in models}
    wishes = Wishes(models, runner.residency.loaded, batches=batches, machine=runner._spool.machine)
    claims = runner.queue.leases.claim(runner.worker, wishes)
    runner.keeping.hold(claims)
    return claims


def run(runner: JobRunner, most: int = 1) -> list[Claim]:
    """Run the next call to its end, files included; return what was claimed for it."""
    claims = take(runner, most)
    runner.run(claims)
    runner.finish()
    return claims


def submit_and_run(runner: JobRunner, *jobs: VideoJob) -> list[VideoJob]:
    """Submit jobs, run all that waits, one call at a time, and return their records."""
    ids = [runner.queue.submit(job).job.id for job in jobs or (queued(),)]
    while run(runner):
        pass
    return [read(runner.queue, job_id) for job_id in ids]


def read(queue: Queue, job: VideoJob | str) -> VideoJob:
    """Return a record that must be there."""
    stored = queue.records.get(job if isinstance(job, str) else job.id)
    assert stored is not None
    return stored.job
