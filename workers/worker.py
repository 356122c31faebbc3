"""The RQ worker: one process, never a fork per job, tasks by allow-list, alive by a heartbeat of its own.

RQ's stock worker forks for every job, which would lose the loaded pipeline, and imports whatever function name a
queue entry gives. This one runs jobs in its own process and knows its tasks by name.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import structlog
from rq import Queue as RQQueue
from rq import SimpleWorker
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from polyreel.errors import PolyreelError
from polyreel.queue import QUEUE_NAME, Queue

log = structlog.get_logger()

#: Seconds between two heartbeats; a worker is dead after `polyreel.records.HEARTBEAT_TTL_S` without one.
BEAT_S = 3.0


#: Exit code of a worker that ended itself over a job that did not heed its time limit (EX_SOFTWARE).
STUCK_EXIT = 70


class TaskNotAllowed(PolyreelError):
    """Raised for a queue entry that names anything but one of our tasks; nothing of it is imported or run."""

    code = "task_not_allowed"


class AllowListedJob(Job):
    """A queue entry whose function name is looked up in a table and never imported."""

    tasks: ClassVar[Mapping[str, Callable[..., None]]] = {}

    def _execute(self) -> None:
        task = self.tasks.get(str(self.func_name))
        if task is None:
            raise TaskNotAllowed(f"The queue entry {self.id} names {self.func_name!r}, which is not one of our tasks.")
        task(*self.args)

    # RQ would import these dotted names from the queue entry too.
    success_callback = property(lambda self: None)
    failure_callback = property(lambda self: None)
    stopped_callback = property(lambda self: None)

    def restore(self, raw_data: Any) -> None:
        """Read an entry; one that cannot be read does not exist, which RQ steps over. Any: Redis' own mapping."""
        try:
            super().restore(raw_data)
        except NoSuchJobError:
            raise
        except Exception as err:  # RQ would end the worker over it, and the next one at its start
            log.error("queue entry dropped", entry=self.id, reason=f"it cannot be read: {type(err).__name__}")
            raise NoSuchJobError(f"The queue entry {self.id} cannot be read.") from err

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        """Send none: RQ would call any address that the queue entry gives. Any: RQ's status, a word or its enum."""


class ModelWorker(SimpleWorker):
    """Runs allow-listed tasks in this process."""

    job_class = AllowListedJob

    #: How long a job may go on after the first SIGTERM before it is handed back, seconds.
    drain_s = 30.0

    def procline(self, message: str) -> None:
        """Keep our own process title; RQ would write its state over it."""

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
    connection: Any, name: str, tasks: Mapping[str, Callable[..., None]], drain_s: float = ModelWorker.drain_s
) -> ModelWorker:
    """Return a worker for our queue. Any: redis-py's generic client types differ between its sync flavours.

    Args:
        connection: a client that speaks bytes and retries patiently.
        name: unique among live workers.
        tasks: by name; the only ones that this worker runs.
        drain_s: see `ModelWorker`.
    """
    job_class = type("TaskJob", (AllowListedJob,), {"tasks": dict(tasks)})
    queue = RQQueue(QUEUE_NAME, connection=connection, serializer=JSONSerializer, job_class=job_class)
    worker = ModelWorker([queue], connection=connection, name=name, serializer=JSONSerializer, job_class=job_class)
    worker.drain_s = drain_s
    return worker


class Heartbeat:
    """Tells Redis that this worker lives, and repairs the queue in passing, from a thread of its own.

    Args:
        queue: of this process.
        worker: this worker's name.
        about: what the heartbeat says, asked anew each time; JSON values.
        is_stuck: whether the job in progress is so late that only the end of the process helps.
    """

    def __init__(
        self,
        queue: Queue,
        worker: str,
        about: Callable[[], dict[str, object]],
        is_stuck: Callable[[], bool] = lambda: False,
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._about = about
        self._is_stuck = is_stuck
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat at once, then every `BEAT_S` seconds."""
        self._thread.start()

    def stop(self) -> None:
        """Stop beating and say so, so that nobody waits for the heartbeat to run out."""
        self._stop.set()
        self._thread.join(timeout=10)
        try:
            self._queue.records.leave(self._worker)
        except Exception as err:  # Redis is gone before us: the heartbeat runs out by itself
            log.info("heartbeat not withdrawn", reason=str(err))

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._is_stuck():
                log.critical("worker ends", reason="the job in progress is over its time inside a native call")
                os._exit(STUCK_EXIT)
            try:
                self._queue.records.beat(self._worker, self._about())
                # Only after a beat that arrived: after an outage we must not take ourselves for dead.
                for job_id in self._queue.reconcile():
                    log.warning("job put back into the queue", job_id=job_id)
            except Exception as err:  # the thread must outlive any trouble with Redis
                log.warning("heartbeat failed", reason=str(err))
            self._stop.wait(BEAT_S)
