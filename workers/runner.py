"""Runs one job from its claim to its end: load, generate, encode, store, finish.

The record is the truth: every change goes through it with the fence of our claim, and when a change is refused (the
job was cancelled, or given to another worker because we seemed dead) the rest of the work is dropped.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import structlog
from rq.timeouts import JobTimeoutException

from models import OnProgress, Progress, Video
from polyreel.errors import (
    Cancelled,
    CheckpointUnavailable,
    EncodingFailed,
    PolyreelError,
    QueueUnavailable,
)
from polyreel.formats import formats
from polyreel.job import JobStatus, Output, VideoJob
from polyreel.queue import Queue
from polyreel.records import redis_errors
from polyreel.request import OutputSpec
from polyreel.storage import Storage
from workers.prepare import Preparer
from workers.receipt import metadata, receipt
from workers.residency import Residency, free_memory

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
        self.storage = storage
        self.scratch = scratch
        self.worker = worker
        self.file_metadata = file_metadata
        self.preparer = Preparer(residency.catalogue, storage, residency.checkpoints)
        #: Id of the job that is being run, "" between jobs; told in the heartbeat, read from its thread.
        self.current = ""
        self._since = 0.0

    def is_over(self, limit_s: float) -> bool:
        """Return whether the job in progress has run for more than `limit_s` seconds."""
        return bool(self.current) and time.monotonic() - self._since > limit_s

    def run(self, job_id: str) -> None:
        """Claim and run a job; return without doing anything when it is not to be had (ended, or someone has it).

        Expected failures end in the record and do not raise. A stop of the process (SystemExit) hands the job back
        uncounted and goes on up.
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
                self._discard(job)
        except QueueUnavailable:
            # Nothing can be recorded. We stop having it (see `current`), so that it runs again when Redis is back.
            log.error("job dropped", reason="the queue stayed away")
        except (SystemExit, KeyboardInterrupt) as stop:
            # Only the record: RQ is about to mark its entry as failed, and `reconcile` makes a new one.
            self.records.release(job.id, fence, counted=False)
            log.info("job handed back")
            raise type(stop)() from None  # without the pipeline's frames, which RQ would print
        except BaseException as err:
            self._fail(job, fence, err)
            _let_go(err)
            free_memory()

    def _run_claimed(self, job: VideoJob, fence: int) -> None:
        timings: dict[str, float] = {}
        with _timed(timings, "load"):
            prepared = self.preparer.prepare(job.request)
            model = self.residency.get(job.request.model)
        self._advance(job, fence, JobStatus.RUNNING, progress=_PROGRESS["generate"])
        with _timed(timings, "generate"):
            family = self.residency.family(job.request.model)
            [video] = family.generate(model, [prepared], self._on_progress(job, fence))
        timings |= video.seconds
        facts = receipt(prepared, video, model)
        self._advance(job, fence, JobStatus.ENCODING, progress=_PROGRESS["encode"], stage="encoding", timings=timings)
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            with _timed(timings, "encode"):
                about = metadata(facts) if self.file_metadata else None
                paths = [
                    _encode(video, spec, Path(folder) / f"{n}", about) for n, spec in enumerate(job.request.outputs)
                ]
            self._advance(job, fence, JobStatus.UPLOADING, progress=_PROGRESS["store"], timings=timings)
            with _timed(timings, "store"):
                outputs = [
                    self._store(path, key, spec, video.frames)
                    for path, key, spec in zip(paths, job.output_keys, job.request.outputs, strict=True)
                ]
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
        taken = sum(timings[stage] for stage in ("load", "generate", "encode", "store"))
        with suppress(QueueUnavailable), redis_errors():  # the job has ended well; a mean is not worth its failure
            self.records.learn_seconds(job.request.model, taken)
        log.info("job succeeded", **{f"{stage}_s": round(seconds, 3) for stage, seconds in timings.items()})

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

    def _store(self, path: Path, key: str, spec: OutputSpec, frames: np.ndarray) -> Output:
        num_frames, height, width, _ = frames.shape
        self.storage.put(path, key)
        return Output(
            key=key,
            format=spec.format,
            media_type=formats()[spec.format].media_type,
            bytes=path.stat().st_size,
            height=height,
            width=width,
            num_frames=num_frames,
            fps=spec.fps,
            sha256=_sha256(path),
        )

    def _fail(self, job: VideoJob, fence: int, err: BaseException) -> None:
        code, message = _public(job, err)
        log.error("job failed", code=code, reason=str(err), exc_info=err if code == "internal_error" else err.__cause__)
        if self.records.advance(
            job.id, fence, JobStatus.FAILED, error_code=code, error_message=message, ended_at=time.time()
        ):
            self._discard(job)

    def _discard(self, job: VideoJob) -> None:
        """Remove the files that were stored before the job came to another end than success."""
        for key in job.output_keys:
            try:
                self.storage.delete(key)
            except Exception as err:  # the storage may be why the job failed
                log.warning("file not removed", key=key, reason=str(err))


def _let_go(err: BaseException | None) -> None:
    """Drop the tracebacks of an error and its causes: their frames hold the tensors of the failed call."""
    while err is not None:
        err.__traceback__ = None
        err = err.__cause__ or err.__context__


#: What the client is told where our own message is for the operator: it names files, or quotes ffmpeg.
_PUBLIC: dict[type[PolyreelError], str] = {
    EncodingFailed: "The frames could not be encoded as a file; the operator finds the reason in the worker's log.",
    CheckpointUnavailable: "The model {model} cannot run on this server; the operator finds the reason in the log.",
}


def _public(job: VideoJob, err: BaseException) -> tuple[str, str]:
    """Return the code and message of a failure, fit for the client."""
    chain = [err, err.__cause__]
    if any(isinstance(cause, JobTimeoutException) for cause in chain):
        return "timeout", "The job ran longer than this server allows (job_timeout_s)."
    for kind, message in _PUBLIC.items():
        if isinstance(err, kind):
            return err.code, message.format(model=job.request.model)
    if any(type(cause).__name__ == "OutOfMemoryError" for cause in chain):
        r = job.request
        return "gpu_out_of_memory", (
            f"The GPU has too little memory for {r.num_frames} frames of {r.width}x{r.height}; ask for less."
        )
    if isinstance(err, PolyreelError):
        return err.code, err.message
    return "internal_error", f"The job failed inside the server; the operator finds job {job.id} in the log."


def _encode(video: Video, spec: OutputSpec, path: Path, about: dict[str, str] | None) -> Path:
    format = formats()[spec.format]
    path = path.with_suffix(f".{format.extension}")
    format.encode(video.frames, spec, path, audio=video.audio, metadata=about)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    timings[stage] = time.monotonic() - start
