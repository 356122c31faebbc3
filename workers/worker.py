"""The RQ worker: one process, never a fork per job, work by our own claim, leases kept by its keeper.

RQ's stock worker forks for every job, which would lose the loaded pipeline, takes jobs out of its lists before anybody
has them, and imports whatever function name a queue entry gives. This one claims from our records and runs what those
say; RQ's part is the loop, the signals, and what `rq info` shows of it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from rq import Queue as RQQueue
from rq import SimpleWorker
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from polyreel.errors import QueueUnavailable
from polyreel.leases import Claim
from polyreel.records import redis_errors

log = structlog.get_logger()

#: Seconds between two looks for work while there is none.
POLL_S = 0.1

#: Seconds between two heartbeats of RQ's own, for `rq info`.
_RQ_BEAT_S = 15.0


class ModelWorker(SimpleWorker):
    """Claims jobs and runs them in this process; made by `make_worker`."""

    #: How long a job may go on after the first SIGTERM before it is handed back, seconds.
    drain_s: float
    #: Asks for work; returns what this worker has from then on.
    claim: Callable[[], list[Claim]]
    #: Runs it.
    run: Callable[[Sequence[Claim]], None]

    def procline(self, message: str) -> None:
        """Keep our own process title; RQ would write its state over it."""

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:
        """Wait for work and return it, None when told to stop. Any: RQ's loop hands the pair to `execute_job`."""
        self._state = WorkerStatus.IDLE
        self._state = WorkerStatus.IDLE
        beaten_at = -_RQ_BEAT_S
        pause = POLL_S
        while not self._stop_requested:
            try:
                with redis_errors():
                    if time.monotonic() - beaten_at > _RQ_BEAT_S:
                        self.heartbeat()
                        beaten_at = time.monotonic()
                    claims = self._claim_whole()
                pause = POLL_S
            except QueueUnavailable as err:
                log.warning("no work to be had", reason=err.message)
                claims, pause = [], min(5.0, pause * 2)
            if claims:
                return claims, self.queues[0]
            if timeout is None:
                return None
            time.sleep(pause)
        return None

    def _claim_whole(self) -> list[Claim]:
        """Claim, and be busy at once: a signal in between must not leave a claimed job to its lease."""
        self._state = WorkerStatus.BUSY
        claims: list[Claim] = []
        try:
            claims = self.claim()
        finally:
            if not claims:
                self._state = WorkerStatus.IDLE
        return claims

    def execute_job(self, job: Any, queue: RQQueue) -> None:
        """Run what `dequeue_job_and_maintain_ttl` returned. Any: claims, in the place of RQ's job."""
        claims: list[Claim] = job
        self._tell_rq(WorkerStatus.BUSY, claims[0].job_id)
        try:
            self.run(claims)
        finally:
            self._tell_rq(WorkerStatus.IDLE, None)

    def _tell_rq(self, status: WorkerStatus, job_id: str | None) -> None:
        self._state = status
        try:
            with redis_errors(), self.connection.pipeline() as pipeline:
                self.set_state(status, pipeline=pipeline)
                self.set_current_job_id(job_id, pipeline=pipeline)
                pipeline.execute()
        except QueueUnavailable:
            log.debug("rq info not told")  # which is all that is lost

    def handle_warm_shutdown_request(self) -> None:
        """Give the job in progress `drain_s`, then stop as a second SIGTERM does: the job is handed back."""
        super().handle_warm_shutdown_request()  # type: ignore[no-untyped-call]
        # RQ takes a second signal within a second for an echo of the first.
        timer = threading.Timer(max(1.1, self.drain_s), os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()

    def end_after_this_job(self) -> None:
        """Take no further job; `work` returns as it does after a SIGTERM."""
        self._stop_requested = True

    @property
    def is_draining(self) -> bool:
        """True once this worker takes no further jobs."""
        return bool(self._stop_requested)


def make_worker(
    connection: Any,
    name: str,
    models: Sequence[str],
    *,
    claim: Callable[[], list[Claim]],
    run: Callable[[Sequence[Claim]], None],
    drain_s: float = 30.0,
) -> ModelWorker:
    """Return a worker. Any: redis-py's generic client types differ between its sync flavours.

    Args:
        connection: a client that speaks bytes and retries patiently.
        name: unique among live workers.
        models: catalogue names that it serves: RQ shows a queue for each.
        claim, run, drain_s: see `ModelWorker`.
    """
    queues = [RQQueue(model, connection=connection, serializer=JSONSerializer) for model in models]
    worker = ModelWorker(queues, connection=connection, name=name, serializer=JSONSerializer)
    worker.claim, worker.run, worker.drain_s = claim, run, drain_s
    return worker
