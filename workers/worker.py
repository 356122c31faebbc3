"""The RQ worker: one process, never a fork per job, tasks by allow-list, alive by a heartbeat of its own.

RQ's stock worker forks for every job, which would lose the loaded pipeline, and imports whatever function name a
queue entry gives. This one runs jobs in its own process and knows its tasks by name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import structlog
from rq import Queue as RQQueue
from rq import SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from polyreel.errors import PolyreelError
from polyreel.queue import QUEUE_NAME, Queue

log = structlog.get_logger()

#: Seconds between two heartbeats; a worker is dead after `polyreel.records.HEARTBEAT_TTL_S` without one.
BEAT_S = 3.0


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

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        """Send none: RQ would call any address that the queue entry gives. Any: RQ's status, a word or its enum."""


class ModelWorker(SimpleWorker):
    """Runs allow-listed tasks in this process."""

    job_class = AllowListedJob

    def procline(self, message: str) -> None:
        """Keep our own process title; RQ would write its state over it."""


def make_worker(connection: Any, name: str, tasks: Mapping[str, Callable[..., None]]) -> ModelWorker:
    """Return a worker for our queue. Any: redis-py's generic client types differ between its sync flavours.

    Args:
        connection: a client that speaks bytes and retries patiently.
        name: unique among live workers.
        tasks: by name; the only ones that this worker runs.
    """
    job_class = type("TaskJob", (AllowListedJob,), {"tasks": dict(tasks)})
    queue = RQQueue(QUEUE_NAME, connection=connection, serializer=JSONSerializer, job_class=job_class)
    return ModelWorker([queue], connection=connection, name=name, serializer=JSONSerializer, job_class=job_class)


class Heartbeat:
    """Tells Redis that this worker lives, and repairs the queue in passing, from a thread of its own.

    Args:
        queue: of this process.
        worker: this worker's name.
        about: what the heartbeat says, asked anew each time; JSON values.
    """

    def __init__(self, queue: Queue, worker: str, about: Callable[[], dict[str, object]]) -> None:
        self._queue = queue
        self._worker = worker
        self._about = about
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
            try:
                self._queue.records.beat(self._worker, self._about())
                # Only after a beat that arrived: after an outage we must not take ourselves for dead.
                for job_id in self._queue.reconcile():
                    log.warning("job put back into the queue", job_id=job_id)
            except Exception as err:  # the thread must outlive any trouble with Redis
                log.warning("heartbeat failed", reason=str(err))
            self._stop.wait(BEAT_S)
