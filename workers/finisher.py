"""Encodes and stores finished videos beside the next pipeline call, in one thread.

The worker has both jobs then: its own lease for each, and each ends by itself. A worker that stops waits for this one
too, and gives back what is not done in time. Files go into the spool first (`workers.spool`), so a video whose files
were made is never made again on this machine; those that the storage does not take wait in `workers.uploads`.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from models import Video
from polyreel.errors import Cancelled, EncodingFailed, QueueUnavailable, StorageAway, StorageFailed, StorageFull
from polyreel.job import JobStatus, VideoJob
from polyreel.leases import Claim
from polyreel.policy import Judge
from polyreel.records import Records, redis_errors
from polyreel.tracing import log_fields
from workers.failures import public
from workers.receipt import metadata
from workers.reports import ENCODE, STORE
from workers.results import Results
from workers.snapshots import JobSnapshots
from workers.spool import Spool, Spooled, full_disk
from workers.trail import tell_end, timed
from workers.uploads import Uploads

log = structlog.get_logger()

#: A disk with less space than this made ffmpeg fail, bytes.
_NO_SPACE = 2**20


@dataclass(frozen=True)
class Finished:
    """A video that came out of a pipeline.

    Args:
        job: whose it is.
        claim: what we may write with.
        video: the frames; None once its files are in the spool.
        facts: its receipt, plain JSON.
        timings: seconds so far.
        snapshots: what was saved on the way, None for a short job.
        spooled: its files, where these are made already.
    """

    job: VideoJob
    claim: Claim
    video: Video | None
    facts: dict[str, Any]  # Any: JSON
    timings: dict[str, float] = field(default_factory=dict)
    snapshots: JobSnapshots | None = None
    spooled: Spooled | None = None


class Finisher:
    """Brings videos to their end, one call's after the other's.

    Args:
        records: with a client that waits for Redis to come back.
        results: makes the files.
        spool: where they are made, and wait.
        worker: name of this worker.
        on_begin: called in a thread with every job whose files are made or stored next.
        on_wait: called in a thread with every job whose files wait for the storage.
        on_end: called in a thread with every job that has come to its end, and whether it succeeded.
        spool_s: how long a storage that is away is waited for, seconds.
        file_metadata: write each video's receipt into its files.
        judge: asks the content policy before a file is made; None is no policy.
    """

    def __init__(
        self,
        records: Records,
        results: Results,
        spool: Spool,
        worker: str,
        on_begin: Callable[[Finished], None],
        on_wait: Callable[[Finished], None],
        on_end: Callable[[Finished, bool], None],
        *,
        spool_s: float,
        file_metadata: bool = True,
        judge: Judge | None = None,
    ) -> None:
        self._records = records
        self._results = results
        self._spool = spool
        self._worker = worker
        self._on_begin = on_begin
        self._on_wait = on_wait
        self._on_end = on_end
        self._ending = threading.Lock()
        self._uploads: Uploads[Finished] = Uploads(self._try_again, self._end, results.storage.check, spool_s)
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

    @property
    def takes_more(self) -> bool:
        """False while the storage has been away for so long that no further video should be begun."""
        return self._uploads.takes_more

    def storage_failed(self, why: StorageFailed) -> None:
        """Begin nothing until the storage works again: a job could not be read from it."""
        self._uploads.note(why)

    def wait_for_uploads(self, timeout_s: float) -> None:
        """Wait until no files wait for the storage, but no longer than so many seconds."""
        if not self._uploads.wait(timeout_s):
            log.warning("files wait in the spool", consequence="the next worker of this machine stores them")

    def give_up(self) -> None:
        """Write nothing more: the jobs are being given back. What is in the spool stays there."""
        self._is_over.set()
        self._uploads.give_up()

    def _run(self, videos: list[Finished]) -> None:
        try:
            while videos:
                self._bring_to_end(videos.pop(0))
        finally:
            self._is_idle.set()

    def _bring_to_end(self, made: Finished) -> None:
        with _named(made):
            if self._is_over.is_set():
                return  # it is given back
            self._on_begin(made)
            try:
                made = self._in_spool(made)
                on = {"spooled_on": self._spool.machine}
                self._advance(made, JobStatus.UPLOADING, progress=STORE, stage="", timings=made.timings, **on)
                if self._uploads.is_away:  # it would cost a try, and those that wait were here before
                    raise self._uploads.why
                self._store(made)
            except StorageAway as err:
                self._on_wait(made)
                self._uploads.add(made, err)
            except Exception as err:
                self._end(made, err)
            else:
                self._end(made, None)

    def _in_spool(self, made: Finished) -> Finished:
        """Return a video whose files are made, without its frames."""
        if made.video is None:
            return made
        video, timings = made.video, made.timings
        self._advance(made, JobStatus.ENCODING, progress=ENCODE, stage="encoding", timings=timings)
        if self._judge:  # before there is any file, on this disk or elsewhere
            with timed(timings, "policy"):
                self._judge.check_frames(video.frames, made.job.request, made.job.owner)
            made.facts["content_policy"] = self._judge.name
        folder = self._spool.begin(made.job.id, made.claim.fence)
        with timed(timings, "encode"), full_disk("The files of the video could not be made"):
            about = metadata(made.facts) if self._file_metadata else None
            try:
                paths = self._results.encode(made.job, video, folder, about)
            except EncodingFailed as err:
                if shutil.disk_usage(folder).free < _NO_SPACE:
                    raise StorageFull("The files of the video could not be made: no space is left.") from err
                raise
            outputs = self._results.describe(made.job, made.claim.fence, paths, video)
        names = tuple(path.name for path in paths)
        spooled = Spooled(folder, names, outputs, made.facts, dict(timings), video.resumed_from, video.not_resumable)
        self._spool.keep(spooled)
        return replace(made, video=None, spooled=spooled)

    def _store(self, made: Finished) -> None:
        assert made.spooled is not None  # noqa: S101 `_in_spool` saw to it
        timings = made.timings
        with timed(timings, "store"):
            try:
                self._results.store(made.spooled)
            except StorageFailed:
                if not made.spooled.folder.exists():
                    raise Cancelled("Another attempt has taken the files over.") from None
                raise
        self._advance(
            made,
            JobStatus.SUCCEEDED,
            progress=100,
            timings={stage: round(seconds, 3) for stage, seconds in timings.items()},
            receipt=made.facts,
            resumed_from=made.spooled.resumed_from,
            not_resumable=made.spooled.not_resumable,
            outputs=[{name: getattr(output, name) for name in output.__slots__} for output in made.spooled.outputs],
        )
        log.info("job succeeded", **{f"{stage}_s": round(seconds, 3) for stage, seconds in timings.items()})

    def _try_again(self, made: Finished) -> None:
        with _named(made):
            self._on_begin(made)
            try:
                self._store(made)
            except StorageAway:
                self._on_wait(made)
                raise

    def _end(self, made: Finished, trouble: Exception | None) -> None:
        """Note what became of a job; called in either thread."""
        with _named(made):
            if trouble is None:
                self._spool.remove(made.job.id, made.claim.fence)
            elif isinstance(trouble, Cancelled):
                log.info("job dropped", reason="cancelled, or given to another worker")
                self._results.discard(made.job, made.claim.fence)
            elif isinstance(trouble, QueueUnavailable):
                # Nothing can be recorded; when our lease has run out, the job is taken up again.
                log.error("job dropped", reason="the queue stayed away")
            else:
                self._fail(made, trouble)
            tell_end(made.job, made.timings, self._worker, trouble)
            if self._is_over.is_set():
                return
            try:
                with self._ending:
                    self._on_end(made, trouble is None)
            except Exception as err:  # the others of the call must come to their ends
                log.error("end of a job not noted", exc_info=err)

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
            self._spool.remove(made.job.id, made.claim.fence)
            if isinstance(err, StorageFull):
                self._uploads.note(err)
        self._results.discard(made.job, made.claim.fence)


def _named(made: Finished) -> AbstractContextManager[object]:
    """Return a context whose log lines name the job."""
    return structlog.contextvars.bound_contextvars(
        job_id=made.job.id, model=made.job.request.model, **log_fields(made.job.trace)
    )


def fail(records: Records, job: VideoJob, claim: Claim, worker: str, err: BaseException) -> None:
    """Record why a job failed, and log what the operator needs."""
    code, message = public(job, err)
    log.error("job failed", code=code, reason=str(err), exc_info=err if code == "internal_error" else err.__cause__)
    try:
        with redis_errors():
            records.advance(claim.job_id, claim.fence, JobStatus.FAILED, worker, error_code=code, error_message=message)
    except QueueUnavailable:
        log.error("failure not recorded", reason="the queue stayed away")
