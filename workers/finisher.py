"""Encodes and stores finished videos beside the next pipeline call, in one thread.

The worker has both jobs then: its own lease for each, and each ends by itself. A worker that stops waits for this one
too, and gives back what is not done in time.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from models import Video
from polyreel.errors import Cancelled, QueueUnavailable
from polyreel.job import JobStatus, VideoJob
from polyreel.leases import Claim
from polyreel.policy import Judge
from polyreel.records import Records, redis_errors
from workers.attempts import timed
from workers.failures import public
from workers.receipt import metadata
from workers.reports import ENCODE, STORE
from workers.results import Results
from workers.snapshots import JobSnapshots

log = structlog.get_logger()


@dataclass(frozen=True)
class Finished:
    """A video that came out of a pipeline.

    Args:
        job: whose it is.
        claim: what we may write with.
        video: the frames.
        facts: its receipt, plain JSON.
        timings: seconds so far.
        snapshots: what was saved on the way, None for a short job.
    """

    job: VideoJob
    claim: Claim
    video: Video
    facts: dict[str, Any]  # Any: JSON
    timings: dict[str, float] = field(default_factory=dict)
    snapshots: JobSnapshots | None = None


class Finisher:
    """Brings videos to their end, one call's after the other's.

    Args:
        records: with a client that waits for Redis to come back.
        results: makes the files.
        scratch: folder for files in the making, on a local disk.
        worker: name of this worker.
        on_begin: called in the thread with every job whose files are made next.
        on_end: called in the thread with every job that has come to its end, and whether it succeeded.
        file_metadata: write each video's receipt into its files.
        judge: asks the content policy before a file is made; None is no policy.
    """

    def __init__(
        self,
        records: Records,
        results: Results,
        scratch: Path,
        worker: str,
        on_begin: Callable[[Finished], None],
        on_end: Callable[[Finished, bool], None],
        *,
        file_metadata: bool = True,
        judge: Judge | None = None,
    ) -> None:
        self._records = records
        self._results = results
        self._scratch = scratch
        self._worker = worker
        self._on_begin = on_begin
        self._on_end = on_end
        self._file_metadata = file_metadata
        self._judge = judge
        # Not the thread's own join: in Python 3.11 an exception out of a signal's handler makes a thread look ended.
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._is_over = threading.Event()

    def hand(self, videos: Sequence[Finished]) -> None:
        """Take the videos of one call; wait until those of the call before are done, so that memory is bounded."""
        if videos:
            self.wait()
            thread = threading.Thread(target=self._run, args=(list(videos),), name="finisher", daemon=True)
            self._is_idle.clear()
            try:
                thread.start()
            except BaseException:
                self._is_idle.set()
                raise

    def wait(self) -> None:
        """Wait until nothing is in the making."""
        while not self._is_idle.wait(0.2):  # in slices: a signal is handled between them
            pass

    def give_up(self) -> None:
        """Write nothing more: the jobs are being given back."""
        self._is_over.set()

    def _run(self, videos: list[Finished]) -> None:
        try:
            while videos:
                self._bring_to_end(videos.pop(0))
        finally:
            self._is_idle.set()

    def _bring_to_end(self, made: Finished) -> None:
        with structlog.contextvars.bound_contextvars(job_id=made.job.id, model=made.job.request.model):
            if self._is_over.is_set():
                return  # it is given back
            self._on_begin(made)
            succeeded = self._finish(made)
            if self._is_over.is_set():
                return
            try:
                self._on_end(made, succeeded)
            except Exception as err:  # the others of the call must come to their ends
                log.error("end of a job not noted", exc_info=err)

    def _finish(self, made: Finished) -> bool:
        try:
            self._make_files(made)
        except Cancelled:
            log.info("job dropped", reason="cancelled, or given to another worker")
            self._results.discard(made.job, made.claim.fence)
        except QueueUnavailable:
            # Nothing can be recorded; when our lease has run out, the job runs again.
            log.error("job dropped", reason="the queue stayed away")
        except Exception as err:
            self._fail(made, err)
        else:
            return True
        return False

    def _make_files(self, made: Finished) -> None:
        timings = made.timings
        self._advance(made, JobStatus.ENCODING, progress=ENCODE, stage="encoding", timings=timings)
        if self._judge:  # before there is any file, on this disk or elsewhere
            with timed(timings, "policy"):
                self._judge.check_frames(made.video.frames, made.job.request, made.job.owner)
            made.facts["content_policy"] = self._judge.name
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            with timed(timings, "encode"):
                about = metadata(made.facts) if self._file_metadata else None
                paths = self._results.encode(made.job, made.video, Path(folder), about)
            self._advance(made, JobStatus.UPLOADING, progress=STORE, stage="", timings=timings)
            with timed(timings, "store"):
                outputs = self._results.store(made.job, made.claim.fence, paths, made.video)
        self._advance(
            made,
            JobStatus.SUCCEEDED,
            progress=100,
            timings={stage: round(seconds, 3) for stage, seconds in timings.items()},
            receipt=made.facts,
            resumed_from=made.video.resumed_from,
            not_resumable=made.video.not_resumable,
            outputs=[{name: getattr(output, name) for name in output.__slots__} for output in outputs],
        )
        log.info("job succeeded", **{f"{stage}_s": round(seconds, 3) for stage, seconds in timings.items()})

    def _advance(self, made: Finished, status: JobStatus, **fields: object) -> None:
        if self._is_over.is_set():
            raise Cancelled("The job is given back.")
        with redis_errors():
            is_ours = self._records.advance(made.claim.job_id, made.claim.fence, status, self._worker, **fields)
        if not is_ours:
            raise Cancelled("The job ended, or belongs to another worker now.")

    def _fail(self, made: Finished, err: Exception) -> None:
        if self._is_over.is_set():  # it runs again elsewhere
            log.info("job dropped", reason="given back", trouble=str(err))
        else:
            fail(self._records, made.job, made.claim, self._worker, err)
        self._results.discard(made.job, made.claim.fence)


def fail(records: Records, job: VideoJob, claim: Claim, worker: str, err: BaseException) -> None:
    """Record why a job failed, and log what the operator needs."""
    code, message = public(job, err)
    log.error("job failed", code=code, reason=str(err), exc_info=err if code == "internal_error" else err.__cause__)
    try:
        with redis_errors():
            records.advance(claim.job_id, claim.fence, JobStatus.FAILED, worker, error_code=code, error_message=message)
    except QueueUnavailable:
        log.error("failure not recorded", reason="the queue stayed away")
