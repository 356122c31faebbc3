"""Runs one job from its claim to its end: load, generate, encode, store, finish.

The record is the truth: every change goes through it with the fence of our claim, and when a change is refused (the
job was cancelled, or given to another worker because we seemed dead) the rest of the work is dropped.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from models import OnProgress, Progress
from polyreel.admission import work
from polyreel.errors import Cancelled, QueueUnavailable
from polyreel.job import MAX_ATTEMPTS, JobStatus, VideoJob
from polyreel.queue import Queue
from polyreel.records import redis_errors
from polyreel.storage import Storage
from workers.attempts import Attempts, timed
from workers.failures import is_device_lost, public
from workers.memory import let_go
from workers.prepare import Preparer
from workers.receipt import metadata
from workers.residency import Residency
from workers.results import Results

log = structlog.get_logger()

#: Percent of a job's progress at which each stage begins; denoising fills its span step by step.
_PROGRESS = {"generate": 5, "encode": 85, "store": 95}


class JobRunner:
    """Runs jobs one after the other in this process.

    Args:
        queue: records and re-queueing.
        residency: the pipelines.
        storage: where files go.
        scratch: folder for files in the making, on a local disk.
        worker: this worker's name, as in its heartbeat.
        file_metadata: write each video's receipt into its files.

    Attributes:
        current: id of the job that is being run, "" between jobs; told in the heartbeat, read from its thread.
        attempts: knows which models do not load, and whether this process may take another job.
    """

    def __init__(
        self,
        queue: Queue,
        residency: Residency,
        storage: Storage,
        scratch: Path,
        worker: str,
        *,
        file_metadata: bool = True,
    ) -> None:
        self.queue = queue
        self.records = queue.records
        self.residency = residency
        self.scratch = scratch
        self.worker = worker
        self.file_metadata = file_metadata
        self.preparer = Preparer(residency.catalogue, storage, residency.checkpoints)
        self.attempts = Attempts(residency)
        self.results = Results(storage)
        self.current = ""
        self._since = 0.0

    def is_over(self, limit_s: float) -> bool:
        """Return whether the job in progress has run for more than `limit_s` seconds."""
        return bool(self.current) and time.monotonic() - self._since > limit_s

    def run(self, job_id: str) -> None:
        """Claim and run a job; return without doing anything when it is not to be had (ended, or someone has it).

        Expected failures end in the record and do not raise. A stop of the process (SystemExit) hands the job back
        uncounted and goes on up. Afterwards `attempts.fitness` says whether another job may follow.
        """
        self.current = job_id
        self._since = time.monotonic()
        try:
            stored = self.records.get(job_id)  # before the claim: a job that we cannot read stays free for who can
            fence = self.records.claim(job_id, self.worker, time.time())
            if fence == 0 or stored is None:
                log.info("job not to be had", job_id=job_id)
                return
            with structlog.contextvars.bound_contextvars(job_id=job_id, model=stored.job.request.model):
                self._run_to_its_end(stored.job, fence)
        finally:
            self.current = ""

    def _run_to_its_end(self, job: VideoJob, fence: int) -> None:
        try:
            self._run_claimed(job, fence)
        except Cancelled:
            log.info("job dropped", reason="cancelled, or given to another worker")
            now = self.records.get(job.id)
            if now is not None and now.job.status is JobStatus.CANCELLED:  # else another worker stores these files
                self.results.discard(job)
        except QueueUnavailable:
            # Nothing can be recorded. We stop having it (see `current`), so that it runs again when Redis is back.
            log.error("job dropped", reason="the queue stayed away")
        except (SystemExit, KeyboardInterrupt) as stop:
            # Only the record: RQ is about to mark its entry as failed, and `reconcile` makes a new one.
            self.records.release(job.id, fence, counted=False)
            log.info("job handed back")
            raise type(stop)() from None  # without the pipeline's frames, which RQ would print
        except BaseException as err:
            if is_device_lost(err):
                self._hand_back(job, fence, err)
            else:
                self._fail(job, fence, err)
                let_go(err)
                self.attempts.recover(job.request.model, err)

    def _run_claimed(self, job: VideoJob, fence: int) -> None:
        r = job.request
        log.info("job started", num_frames=r.num_frames, height=r.height, width=r.width, steps=r.num_inference_steps)
        timings: dict[str, float] = {}
        with timed(timings, "load"):
            prepared = self.preparer.prepare(r)
        video, facts = self.attempts.make(
            prepared, lambda: self._start(job, fence), self._on_progress(job, fence), timings
        )
        timings |= video.seconds
        self._advance(job, fence, JobStatus.ENCODING, progress=_PROGRESS["encode"], stage="encoding", timings=timings)
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            with timed(timings, "encode"):
                about = metadata(facts) if self.file_metadata else None
                paths = self.results.encode(job, video, Path(folder), about)
            self._advance(job, fence, JobStatus.UPLOADING, progress=_PROGRESS["store"], timings=timings)
            with timed(timings, "store"):
                outputs = self.results.store(job, paths, video)
        self._advance(
            job,
            fence,
            JobStatus.SUCCEEDED,
            progress=100,
            stage="",
            timings={stage: round(seconds, 3) for stage, seconds in timings.items()},
            receipt=facts,
            outputs=[{name: getattr(output, name) for name in output.__slots__} for output in outputs],
            ended_at=time.time(),
        )
        self.attempts.fitness.job_succeeded()
        if "after_out_of_memory" not in facts:  # else it was slower than the next one will be
            self._learn(job, timings)
        log.info("job succeeded", **{f"{stage}_s": round(seconds, 3) for stage, seconds in timings.items()})

    def _start(self, job: VideoJob, fence: int) -> None:
        self._advance(job, fence, JobStatus.RUNNING, progress=_PROGRESS["generate"], stage="")

    def _advance(self, job: VideoJob, fence: int, status: JobStatus, **fields: object) -> None:
        with redis_errors():
            is_ours = self.records.advance(job.id, fence, status, **fields)
        if not is_ours:
            raise Cancelled("The job ended, or belongs to another worker now.")

    def _on_progress(self, job: VideoJob, fence: int) -> OnProgress:
        start, end = _PROGRESS["generate"], _PROGRESS["encode"]

        def report(progress: Progress) -> None:
            self._advance(
                job,
                fence,
                JobStatus.RUNNING,
                stage=progress.stage,
                step=progress.step,
                total_steps=progress.total_steps,
                progress=int(start + (end - start) * progress.share),
            )

        return report

    def _learn(self, job: VideoJob, timings: dict[str, float]) -> None:
        taken = sum(timings[stage] for stage in ("load", "generate", "encode", "store"))
        denoising = timings.get("denoising", 0.0)
        rest = taken - timings["load"] - denoising
        rates = work(self.residency.catalogue[job.request.model], job.request).rates(denoising, rest)
        with suppress(QueueUnavailable), redis_errors():  # the job has ended well; a mean is not worth its failure
            self.records.learn_seconds(job.request.model, taken, rates)

    def _fail(self, job: VideoJob, fence: int, err: BaseException) -> None:
        code, message = public(job, err)
        log.error("job failed", code=code, reason=str(err), exc_info=err if code == "internal_error" else err.__cause__)
        if self.records.advance(
            job.id, fence, JobStatus.FAILED, error_code=code, error_message=message, ended_at=time.time()
        ):
            self.results.discard(job)

    def _hand_back(self, job: VideoJob, fence: int, err: BaseException) -> None:
        """Leave the job to the next worker, counted as an attempt: it may be what takes the device down."""
        self.attempts.fitness.unfit = "the device does not answer in this process any more"
        log.critical("job handed back", reason=self.attempts.fitness.unfit, exc_info=err)
        stored = self.records.get(job.id)
        if stored is not None and stored.job.attempts >= MAX_ATTEMPTS:
            self.records.give_up(replace(stored, fence=fence))
        else:
            # Only the record, as at a stop.
            self.records.release(job.id, fence, counted=True)
