"""Runs claimed jobs: read, prepare, generate in one call, hand the videos over to be finished.

The record is the truth: every change goes through it with the fence of our claim, and when a change is refused (the
job was cancelled, or given to another worker because we seemed dead) the rest of the work is dropped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import structlog

from models import PreparedRequest
from polyreel.admission import work
from polyreel.durations import seconds_key
from polyreel.errors import Cancelled, QueueUnavailable, StorageAway, StorageFailed
from polyreel.job import JobStatus, VideoJob
from polyreel.leases import Claim, Wishes
from polyreel.metrics import LOADS
from polyreel.policy import Judge, pass_request
from polyreel.queue import Queue
from polyreel.records import Records, redis_errors
from polyreel.storage import Storage
from polyreel.tracing import log_fields
from workers.attempts import Attempts, Made
from workers.batch_sizes import BatchSizes
from workers.failures import is_device_lost, is_timeout
from workers.finisher import Finished, Finisher, fail
from workers.keeping import Keeping
from workers.memory import let_go
from workers.prepare import Preparer
from workers.reports import Reports
from workers.residency import Residency
from workers.results import Results
from workers.room import Room
from workers.snapshots import JobSnapshots
from workers.spool import Spooled, spool_beside
from workers.stop import Stop
from workers.trail import Timings, tell_end, timed

log = structlog.get_logger()

#: How long the files of a job may be in the making, where `job_timeout_s` is not longer, seconds.
FINISH_S = 600.0

#: Wraps a call that must end in time; raises RQ's JobTimeoutException inside it.
Limit = Callable[[], AbstractContextManager[object]]

#: How long a stop waits for the snapshot that is being stored, seconds: the next attempt goes on from it.
_LAST_SNAPSHOT_S = 2.0

#: A job that was read, with what we may write of it.
Taken = tuple[VideoJob, Claim]


class JobRunner:
    """Runs jobs in this process: generates in the caller's thread, and finishes beside the next call.

    Args:
        queue: records and leases, with a client that waits for Redis to come back.
        reports: records with a client that gives up soon, for progress.
        keeping: keeps the leases.
        residency: the pipelines.
        storage: where files go.
        scratch: folder for snapshots in the making, on a local disk; the spool lies beside it.
        worker: this worker's name, as in its heartbeat.
        file_metadata: write each video's receipt into its files.
        batch_sizes: what was measured on this machine.
        resume_every: see `polyreel.settings.Settings`.
        previews: show pictures of what is being denoised.
        judge: asks the content policy; None is no policy.
        spool_s, least_free_bytes: how long files wait for the storage, seconds; without this space none is made.

    Attributes:
        keeping: keeps the leases; it says which jobs this worker has.
        loading: catalogue name of the model that was claimed for and may not be in memory yet, "" between calls.
        current: ids of the jobs in the pipeline, () between calls; told in the heartbeat, read from its thread.
        attempts: knows which models do not load, and whether this process may take another job.
        stop: how far a stop of this process has come.
        succeeded: how many jobs this process has brought to a good end.
    """

    def __init__(
        self,
        queue: Queue,
        reports: Records,
        keeping: Keeping,
        residency: Residency,
        storage: Storage,
        scratch: Path,
        worker: str,
        *,
        file_metadata: bool = True,
        batch_sizes: BatchSizes | None = None,
        resume_every: int = 5,
        previews: bool = False,
        judge: Judge | None = None,
        spool_s: float = 600.0,
        least_free_bytes: float = 0.0,
    ) -> None:
        self.queue = queue
        self.records = queue.records
        self.residency = residency
        residency.on_load = _load_counter(reports)
        self.worker = worker
        self.keeping = keeping
        self.preparer = Preparer(residency.catalogue, storage, residency.checkpoints)
        self.attempts = Attempts(residency, batch_sizes)
        self.current: tuple[str, ...] = ()
        self.loading = ""
        self.stop = Stop()
        self.succeeded = 0
        self._reports = reports
        self._loaded_at = 0.0
        self._is_claiming = False
        self._storage = storage
        self._scratch = scratch
        self._resume_every = resume_every
        self._previews = previews and (judge is None or judge.shows_previews)
        self._judge = judge
        self._spool = spool_beside(scratch)
        self._room = Room(storage, self._spool.folder, least_free_bytes)
        self._finisher = Finisher(
            queue.records,
            Results(storage),
            self._spool,
            worker,
            self._begun,
            self._waits,
            self._ended,
            spool_s=spool_s,
            file_metadata=file_metadata,
            judge=judge,
        )

    @property
    def held_s(self) -> float:
        """Seconds since this worker last loaded a model."""
        return time.monotonic() - self._loaded_at

    def jobs(self) -> list[str]:
        """Return the ids of all jobs that this worker has: in the pipeline, or with their files in the making."""
        return [claim.job_id for claim in self.keeping.claims]

    def claim(self, wishes: Wishes) -> list[Claim]:
        """Ask for work; what comes is kept from then on, or given back by `hand_back`.

        Nothing comes while there is no space for it, or no storage: what waits in the queue goes on waiting.
        """
        if not (self.keeping.is_heard and self._finisher.takes_more and self._room.is_there):
            return []
        self._is_claiming = True
        claims = self.queue.leases.claim(self.worker, replace(wishes, machine=self._spool.machine))
        if claims:
            self.keeping.hold(claims)  # at once: whatever comes between here and their call
        self._is_claiming = False
        return claims

    def run(self, claims: Sequence[Claim], limit: Limit = nullcontext) -> None:
        """Run jobs of one claim to their ends; the files may still be in the making when this returns.

        Expected failures end in the record and do not raise. A stop of the process (SystemExit) hands back uncounted
        what is not done, and goes on up. Afterwards `attempts.fitness` says whether another job may follow.

        Args:
            claims: jobs of one model that may share a call, leased to this worker and known to its keeper.
            limit: for the time that the call may take.
        """
        try:
            taken = self._made_before([job for claim in claims if (job := self._read(claim))])
            if taken:
                if any(job.attempts > 1 for job, _ in taken):
                    # It may be what took its last worker down; a job whose file is in the making would go down with it
                    # again, and again, until it has had its attempts as well.
                    self._finisher.wait()
                self.current = tuple(claim.job_id for _, claim in taken)
                self.loading = taken[0][0].request.model
                self.keeping.refresh()
                with structlog.contextvars.bound_contextvars(model=taken[0][0].request.model, **_named(taken)):
                    self._run(taken, limit)
        except (SystemExit, KeyboardInterrupt) as stop:
            self.stop.is_heeded = True  # here, and not only in the call: another signal may come at its first line
            self.hand_back()
            raise type(stop)() from None  # without the pipeline's frames, which RQ would print
        except Exception as err:  # a mistake of ours; counted, so that it does not go round for ever
            if self.stop.is_forced:
                self.hand_back()
                raise SystemExit from None
            log.critical("jobs handed back", exc_info=err)
            for claim in claims:
                if claim in self.keeping.claims:
                    self._release(claim, counted=True)
        finally:
            self.current, self.loading = (), ""
            self.keeping.refresh()

    def finish(self, uploads_s: float = 0.0) -> None:
        """Wait for the files in the making; a stop of the process hands them back.

        Args:
            uploads_s: how long to wait for those that the storage does not take, seconds; the next worker of this
                machine stores what is left.
        """
        try:
            self._finisher.wait()
            self._finisher.wait_for_uploads(uploads_s)
        except (SystemExit, KeyboardInterrupt):
            self.stop.is_heeded = True
            self.hand_back()
            raise

    def hand_back(self) -> None:
        """Give back every job that this worker has, not counted as an attempt, and finish nothing more.

        What Redis does not take soon, the keeper gives back when this process has gone.
        """
        self.stop.is_heeded = True
        self.keeping.hand_back()
        self._finisher.give_up()
        if self._is_claiming:
            self._hold_what_was_claimed()
        for claim in self.keeping.claims:
            try:
                with redis_errors():
                    self._reports.release(claim.job_id, claim.fence, counted=False)
            except QueueUnavailable as err:
                log.warning("jobs not handed back yet", reason=err.message)
                return
            self.keeping.let_go(claim)
            log.info("job handed back", job_id=claim.job_id)

    def _hold_what_was_claimed(self) -> None:
        """Take over what Redis may have given us in a claim whose answer was cut off by a stop."""
        with suppress(QueueUnavailable), redis_errors():
            said = self._reports.client.hget(f"polyreel:claim:{self.worker}", "jobs")
            parts = json.loads(str(said)) if said else []
            claims = [Claim(job_id, int(fence)) for job_id, fence in zip(parts[::2], parts[1::2], strict=True)]
            self.keeping.hold([claim for claim in claims if claim not in self.keeping.claims])
        self._is_claiming = False

    def _read(self, claim: Claim) -> Taken | None:
        try:
            with redis_errors():
                stored = self.records.get(claim.job_id)
        except QueueUnavailable:
            self._drop(claim, "the queue stayed away")
            return None
        except Exception as err:  # a record that no version of ours wrote
            self._heed_stop()
            log.error("job failed", job_id=claim.job_id, code="unreadable", exc_info=err)
            with suppress(QueueUnavailable), redis_errors():
                message = "The record of this job cannot be read; submit it again."
                self.records.advance(
                    claim.job_id, claim.fence, JobStatus.FAILED, error_code="unreadable", error_message=message
                )
            self.keeping.let_go(claim)
            return None
        if stored is None or stored.job.status.is_terminal or stored.fence != claim.fence:
            self._drop(claim, "it has ended, or belongs to another worker")
            return None
        return stored.job, claim

    def _made_before(self, taken: list[Taken]) -> list[Taken]:
        """Have those finished whose files an earlier attempt has made on this machine; return the others."""
        found = [(job, claim, spooled) for job, claim in taken if (spooled := self._spooled(job, claim))]
        videos = []
        for job, claim, spooled in found:
            log.info("files of an earlier attempt found", job_id=job.id)
            saved = self._snapshots([(job, claim)], resumes=False)
            videos.append(Finished(job, claim, None, spooled.facts, spooled.timings, saved, spooled))
        self._finisher.hand(videos)
        return [(job, claim) for job, claim in taken if claim not in [claim for _, claim, _ in found]]

    def _spooled(self, job: VideoJob, claim: Claim) -> Spooled | None:
        """Return the files of an earlier attempt, unless a content policy is to see its frames that has not."""
        spooled = self._spool.take(job, claim.fence)
        wanted = {job.content_policy, self._judge.name if self._judge else ""} - {""}
        if spooled is None or wanted <= {spooled.facts.get("content_policy")}:
            return spooled
        log.warning("spooled files not used", job_id=job.id, reason="the content policy has not seen them")
        self._spool.remove(job.id, claim.fence)
        return None

    def _run(self, taken: list[Taken], limit: Limit) -> None:
        timings = Timings()
        claims = [claim for _, claim in taken]
        reports = Reports(self._reports, self.keeping, self.worker, claims, shows=self._previews)

        def started() -> None:
            self.keeping.refresh()  # says what is in memory now
            reports.start()

        was_loaded = taken[0][0].request.model in self.residency.loaded
        snapshots = self._snapshots(taken)
        made: list[Made | Exception] = []
        try:
            with self._timed(taken), limit():
                with timed(timings, "load"):
                    prepared = self._prepare(taken)
                good = [one for one in prepared if not isinstance(one, Exception)]
                reports.in_call = [
                    claim for claim, one in zip(claims, prepared, strict=True) if not isinstance(one, Exception)
                ]
                if good:
                    self._say_started(taken)
                    try:
                        made = self.attempts.make_all(good, started, reports.step, timings, snapshots)
                    finally:
                        timings.stretches += reports.stretches()
            self._heed_stop()
        except (SystemExit, KeyboardInterrupt):
            self.stop.is_heeded = True
            self._save_last(snapshots)
            raise
        except Cancelled:
            self._end_dropped(taken, snapshots)
            return
        except Exception as err:
            if self.stop.is_forced:
                self._save_last(snapshots)
                raise SystemExit from err
            self._end_all(taken, err, snapshots, timings)
            return
        finally:
            if snapshots:
                snapshots.close()  # they stay for the next attempt until the job has ended
        has_loaded = not was_loaded and taken[0][0].request.model in self.residency.loaded
        if has_loaded:
            self._loaded_at = time.monotonic() - timings.get("generate", 0.0)
        share = {stage: seconds / max(1, len(good)) for stage, seconds in timings.items()}
        videos, rest = [], iter(made)
        for (job, claim), one in zip(taken, prepared, strict=True):
            end = one if isinstance(one, Exception) else next(rest)
            if claim in reports.dropped:
                self._end_dropped([(job, claim)], snapshots)
            elif isinstance(end, StorageAway):
                self._wait_for_storage((job, claim), end)
            elif isinstance(end, Exception):
                self._end_all([(job, claim)], end, snapshots, timings)
            else:
                video, facts = end
                # What a family took, it took for all that were in its call.
                own = {stage: seconds / facts.get("batch_size", 1) for stage, seconds in video.seconds.items()}
                own_timings = Timings({**share, **own}, timings.stretches)
                videos.append(Finished(job, claim, video, facts, own_timings, snapshots))
        self._finisher.hand(videos)
        if has_loaded:
            with suppress(QueueUnavailable), redis_errors():
                self.queue.leases.learn_swap(taken[0][0].request.model, timings["load"])

    def _heed_stop(self) -> None:
        """Stop now if that was said and lost on the way: what has failed meanwhile may have failed because of it."""
        if self.stop.is_forced:
            raise SystemExit

    def _save_last(self, snapshots: JobSnapshots | None) -> None:
        self.stop.is_heeded = True
        if snapshots:
            snapshots.close(_LAST_SNAPSHOT_S)

    @contextmanager
    def _timed(self, taken: Sequence[Taken]) -> Iterator[None]:
        """Have the keeper end this process when a call is over its time and does not heed the timer."""
        claims = [claim for _, claim in taken]
        self.keeping.limit(claims, self.queue.job_timeout_s)
        try:
            yield
        finally:
            self.keeping.limit(claims, None)

    def _snapshots(self, taken: Sequence[Taken], *, resumes: bool = True) -> JobSnapshots | None:
        """Return where a long job that runs alone saves what it has, and finds what an earlier attempt saved."""
        [(job, claim), *others] = taken
        if others or not job.saved:
            return None
        return JobSnapshots(
            self._storage, job.id, claim.fence, every=self._resume_every, scratch=self._scratch, resumes=resumes
        )

    def _prepare(self, taken: list[Taken]) -> list[PreparedRequest | Exception]:
        """Bring to hand what the requests refer to; an error for each that cannot be prepared."""
        prepared: list[PreparedRequest | Exception] = []
        for job, _ in taken:
            try:
                pass_request(self._judge, job)
                prepared.append(self.preparer.prepare(job.request))
            except Exception as err:
                if is_timeout(err):
                    raise
                prepared.append(err)
        return prepared

    def _say_started(self, taken: list[Taken]) -> None:
        r = taken[0][0].request
        log.info(
            "job started",
            num_frames=r.num_frames,
            height=r.height,
            width=r.width,
            steps=r.num_inference_steps,
            **({"batch_size": len(taken)} if len(taken) > 1 else {}),
        )

    def _end_all(
        self,
        taken: Sequence[Taken],
        err: BaseException,
        snapshots: JobSnapshots | None = None,
        timings: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Bring jobs to their end whose call failed as a whole."""
        model = taken[0][0].request.model
        if is_device_lost(err):
            self.attempts.fitness.unfit = "the device does not answer in this process any more"
            log.critical("jobs handed back", reason=self.attempts.fitness.unfit, exc_info=err)
            for _, claim in taken:  # counted: one of them may be what takes the device down
                self._release(claim, counted=True)
            return
        if is_timeout(err) and len(taken) > 1:
            log.warning("batch over its time, its jobs run alone", batch_size=len(taken))
            for _, claim in taken:  # counted, since a job that was tried before is never batched
                self._release(claim, counted=True)
        else:
            for job, claim in taken:
                fail(self.records, job, claim, self.worker, err)
                tell_end(job, timings, self.worker, err)
                if snapshots and self._is_over(claim):  # else another worker goes on from them
                    snapshots.delete()
                self.keeping.let_go(claim)
        let_go(err)
        self.attempts.recover(model, err)

    def _wait_for_storage(self, taken: Taken, why: StorageAway) -> None:
        """Give a job back whose pictures cannot be read now.

        An outage is no attempt, since each of many workers may meet the same one. Where the storage works but for these
        pictures it is: the job might go round for ever.
        """
        self._finisher.storage_failed(why)
        log.warning("job handed back", job_id=taken[1].job_id, reason=why.message)
        try:
            self._storage.check()
        except StorageFailed:
            self._release(taken[1], counted=False)
        else:
            self._release(taken[1], counted=True)

    def _end_dropped(self, taken: Sequence[Taken], snapshots: JobSnapshots | None = None) -> None:
        for _, claim in taken:
            self._drop(claim, "cancelled, or given to another worker")
            if snapshots and self._is_over(claim):  # else another worker goes on from them
                snapshots.delete()

    def _is_over(self, claim: Claim) -> bool:
        try:
            with redis_errors():
                stored = self._reports.get(claim.job_id)
        except QueueUnavailable:
            return False
        return stored is None or stored.job.status.is_terminal

    def _drop(self, claim: Claim, reason: str) -> None:
        log.info("job dropped", job_id=claim.job_id, reason=reason)
        self.keeping.let_go(claim)

    def _release(self, claim: Claim, *, counted: bool) -> None:
        with suppress(QueueUnavailable), redis_errors():  # else its lease runs out
            self.records.release(claim.job_id, claim.fence, counted=counted)
        # Afterwards: whoever is stopped before Redis has answered still has it, and gives it back the next time.
        self.keeping.let_go(claim)

    def _begun(self, made: Finished) -> None:
        """Limit the time that the files of a job may take; called in a finisher's thread. A storage may hang."""
        self.keeping.limit([made.claim], max(FINISH_S, self.queue.job_timeout_s))

    def _waits(self, made: Finished) -> None:
        """Lift that limit while files wait for the storage; called in a finisher's thread."""
        self.keeping.limit([made.claim], None)

    def _ended(self, made: Finished, succeeded: bool) -> None:
        """Note the end of a job; called in a finisher's thread, one at a time."""
        self.succeeded += succeeded
        self.keeping.let_go(made.claim)  # tells the count too
        if made.snapshots and (succeeded or self._is_over(made.claim)):
            made.snapshots.delete()
        if succeeded:
            self.attempts.fitness.job_succeeded()
            if "after_out_of_memory" not in made.facts:  # else it was slower than the next one will be
                self._learn(made)

    def _learn(self, made: Finished) -> None:
        timings, request = made.timings, made.job.request
        taken = sum(timings[stage] for stage in ("load", "generate", "encode", "store"))
        denoising = timings.get("denoising", 0.0)
        rest = max(0.0, taken - timings["load"] - denoising)
        rates = work(self.residency.catalogue[request.model], request).rates(denoising, rest)
        with suppress(QueueUnavailable), redis_errors():  # the job has ended well; a mean is not worth its failure
            self.records.learn_seconds(
                request.model, taken, rates, shape=seconds_key(request), own_s=taken - timings["load"]
            )


def _load_counter(records: Records) -> Callable[[str], None]:
    def count(model: str) -> None:
        with suppress(QueueUnavailable), redis_errors():  # a model in memory is worth more than its count
            records.count(LOADS, model)

    return count


def _named(taken: Sequence[Taken]) -> dict[str, object]:
    """Return what log lines are to say of the jobs in a call."""
    ids = [claim.job_id for _, claim in taken]
    return {"job_id": ids[0], **log_fields(taken[0][0].trace)} if len(ids) == 1 else {"job_ids": ids}
