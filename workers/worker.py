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
from contextlib import suppress
from types import FrameType
from typing import Any

import structlog
from redis import Redis, RedisError
from rq import Queue as RQQueue
from rq import SimpleWorker
from rq.serializers import JSONSerializer
from rq.utils import now as rq_now
from rq.worker import WorkerStatus
from rq.worker_registration import clean_worker_registry

from polyreel.errors import QueueUnavailable
from polyreel.leases import Claim
from polyreel.records import redis_errors
from workers.stop import Stop

log = structlog.get_logger()

#: Seconds between two looks for work while there is none.
POLL_S = 0.1

#: Longest pause between two tries while Redis is away, seconds.
_LONGEST_PAUSE_S = 5.0

#: Seconds between two heartbeats of RQ's own, for `rq info`.
_RQ_BEAT_S = 15.0

#: How long signing off from RQ may take, seconds; whoever did not is forgotten by the next worker that cleans up.
_SIGN_OFF_S = 2.0

#: A second signal within so many seconds is an echo of the first: a terminal and a supervisor may both have sent it.
_ECHO_S = 1.0


class ModelWorker(SimpleWorker):
    """Claims jobs and runs them in this process; made by `make_worker`."""

    #: How long a job may go on after the first SIGTERM before it is handed back, seconds.
    drain_s: float
    #: Asks for work; returns what this worker has from then on.
    claim: Callable[[], list[Claim]]
    #: Runs it.
    run: Callable[[Sequence[Claim]], None]
    #: Ids of the jobs that this worker has, which may be more than it runs: files are made beside the next call.
    jobs: Callable[[], Sequence[str]]
    #: Called in a thread when this worker takes no further jobs.
    on_drain: Callable[[], None]

    #: Who hands jobs back says in it that it does.
    stop: Stop

    _shown: str | None = ""
    _asked_at = 0.0

    def procline(self, message: str) -> None:
        """Keep our own process title; RQ would write its state over it."""

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:
        """Wait for work and return it, None when told to stop. Any: RQ's loop hands the pair to `execute_job`."""
        beaten_at = -_RQ_BEAT_S
        pause = POLL_S
        while not self._stop_requested:
            claims: list[Claim] = []
            try:
                with redis_errors():
                    if time.monotonic() - beaten_at > _RQ_BEAT_S:
                        self.heartbeat()
                        beaten_at = time.monotonic()
                    claims = self.claim()
                pause = POLL_S
            except QueueUnavailable as err:
                log.warning("no work to be had", reason=err.message)
                pause = min(_LONGEST_PAUSE_S, pause * 2)
            if claims:
                return claims, self.queues[0]
            self._show()
            if timeout is None:
                return None
            self._sleep(pause)
        return None

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stop_requested and time.monotonic() < until:
            time.sleep(min(POLL_S, seconds))

    def execute_job(self, job: Any, queue: RQQueue) -> None:
        """Run what `dequeue_job_and_maintain_ttl` returned. Any: claims, in the place of RQ's job."""
        claims: list[Claim] = job
        self._show(claims[0].job_id)
        self.run(claims)
        self._show()

    def _show(self, job_id: str | None = None) -> None:
        """Tell `rq info` what this worker does: the job in the pipeline, else one whose files are in the making."""
        job_id = job_id or next(iter(self.jobs()), None)
        if job_id == self._shown:
            return
        status = WorkerStatus.BUSY if job_id else WorkerStatus.IDLE
        try:
            with redis_errors(), self.connection.pipeline() as pipeline:
                self.set_state(status, pipeline=pipeline)
                self.set_current_job_id(job_id, pipeline=pipeline)
                pipeline.execute()
            self._shown = job_id
        except QueueUnavailable:
            log.debug("rq info not told")  # which is all that is lost

    # What RQ's loop asks of Redis between two jobs must not end the worker: it would be gone after any longer outage.

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        """Sign on at RQ. Any: RQ's own arguments.

        A Redis that is full refuses that, and a worker that ended over it would load its models again and again.
        """
        try:
            super().bootstrap(*args, **kwargs)
        except RedisError as err:
            log.warning("rq info does not show this worker", reason=str(err))

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        """Beat for RQ. Any: RQ's own arguments."""
        with suppress(RedisError):
            super().heartbeat(*args, **kwargs)

    def check_for_suspension(self, burst: bool) -> None:
        """Heed `rq suspend`."""
        with suppress(RedisError):
            super().check_for_suspension(burst)

    def run_maintenance_tasks(self) -> None:
        """Forget workers that are gone. RQ's own would also import and call what entries in its registries name."""
        self.last_cleaned_at = rq_now()  # type: ignore[assignment]
        with suppress(RedisError):
            for queue in self.queues:
                clean_worker_registry(queue)

    def set_shutdown_requested_date(self) -> None:
        """Show in RQ that a stop was asked for."""
        with suppress(RedisError):
            super().set_shutdown_requested_date()  # type: ignore[no-untyped-call]

    def teardown(self) -> None:
        """Sign off from RQ; no longer than a moment, because a Redis that is away must not hold up a stop."""

        def sign_off() -> None:
            with suppress(RedisError):
                super(ModelWorker, self).teardown()  # type: ignore[no-untyped-call]

        thread = threading.Thread(target=sign_off, name="sign-off", daemon=True)
        thread.start()
        thread.join(_SIGN_OFF_S)

    def kill_horse(self, *_: Any, **__: Any) -> None:
        """Do nothing: RQ would kill the process group of its child, and this worker has none, so its own."""
        log.warning("stop-job command ignored", reason="this server's jobs are cancelled through its API")

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Take the first signal; another of the same moment is its echo, also when it cuts this off."""
        self._asked_at = time.monotonic()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def handle_warm_shutdown_request(self) -> None:
        """Give the jobs in progress `drain_s`, then stop as a second SIGTERM does: they are handed back."""
        super().handle_warm_shutdown_request()  # type: ignore[no-untyped-call]
        threading.Thread(target=self._insist, name="drain", daemon=True).start()

    def _insist(self) -> None:
        """Send the second SIGTERM when the time is up, and again while nobody heeds it or the operator's own."""
        until = time.monotonic() + self.drain_s
        while not self.stop.is_heeded:
            now = time.monotonic()
            # Asked again and again: the signal may have come in the middle of a claim, before its job was known.
            is_up = now >= until or self.stop.is_forced or not self.jobs()
            if is_up and now - self._asked_at >= _ECHO_S:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop now, until somebody heeds it: our own thread and a supervisor may both say so.

        Raises:
            SystemExit: in the main thread, wherever it is.
        """
        if self.stop.is_heeded or time.monotonic() - self._asked_at < _ECHO_S:
            return
        self._asked_at = time.monotonic()
        self.stop.is_forced = True
        raise SystemExit

    def _shutdown(self) -> None:
        """Stop before the next job. RQ's own would raise in the middle of whatever an idle worker does."""
        self._stop_requested = True
        # Not from here: the signal may have come in the middle of telling something else, and Redis may be away.
        threading.Thread(target=self._say_stopping, name="stopping", daemon=True).start()

    def _say_stopping(self) -> None:
        self.on_drain()
        self.set_shutdown_requested_date()

    def end_after_this_job(self) -> None:
        """Take no further job; `work` returns as it does after a SIGTERM."""
        self._stop_requested = True

    @property
    def is_draining(self) -> bool:
        """True once this worker takes no further jobs."""
        return bool(self._stop_requested)


def wait_for_queue(client: Redis) -> None:
    """Return when Redis answers: RQ would give up on it while a worker is made.

    Args:
        client: one that gives up soon.
    """
    pause = POLL_S
    while True:
        try:
            client.ping()
            return
        except RedisError as err:
            if pause == POLL_S:
                log.warning("queue does not answer, waiting for it", reason=str(err))
        time.sleep(pause)
        pause = min(_LONGEST_PAUSE_S, pause * 2)


def make_worker(
    connection: Any,
    name: str,
    models: Sequence[str],
    *,
    claim: Callable[[], list[Claim]],
    run: Callable[[Sequence[Claim]], None],
    jobs: Callable[[], Sequence[str]] = tuple,
    on_drain: Callable[[], None] = lambda: None,
    drain_s: float = 30.0,
    stop: Stop | None = None,
) -> ModelWorker:
    """Return a worker. Any: redis-py's generic client types differ between its sync flavours.

    Args:
        connection: a client that speaks bytes and retries patiently.
        name: unique among live workers.
        models: catalogue names that it serves: RQ shows a queue for each.
        claim, run, jobs, on_drain, drain_s: see `ModelWorker`.
        stop: of who runs the jobs; nobody heeds one that is made here.
    """
    queues = [RQQueue(model, connection=connection, serializer=JSONSerializer) for model in models]
    worker = ModelWorker(queues, connection=connection, name=name, serializer=JSONSerializer)
    worker.claim, worker.run, worker.jobs = claim, run, jobs
    worker.on_drain, worker.drain_s, worker.stop = on_drain, drain_s, stop or Stop()
    return worker
