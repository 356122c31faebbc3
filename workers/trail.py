"""When a job was in which stage, and how that is told to its trace; nothing is sent where there is no tracing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from polyreel import tracing
from polyreel.errors import Cancelled
from polyreel.job import VideoJob
from polyreel.tracing import PARENT, Stretch
from workers.failures import public

#: The stage that others are parts of.
_WHOLE = "generate"


class Timings(dict[str, float]):
    """Seconds by stage; see `polyreel.job.VideoJob.timings`.

    Attributes:
        stretches: when that was.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None, stretches: Iterable[Stretch] = ()) -> None:
        super().__init__(seconds or {})
        self.stretches = list(stretches)


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds of what is done inside to those of a stage; an error adds nothing."""
    start, began = time.monotonic(), time.time()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.monotonic() - start
    if isinstance(timings, Timings) and stage != _WHOLE:
        timings.stretches.append(Stretch(stage, began, time.time()))


def tell_end(job: VideoJob, timings: Mapping[str, float], worker: str, trouble: BaseException | None = None) -> None:
    """Add a job that has come to its end here to the trace of its request.

    Args:
        trouble: why it failed; `Cancelled` where it was dropped.
    """
    parent = job.trace.get(PARENT, "")
    if tracing.provider() is None or not parent:
        return
    code = "dropped" if isinstance(trouble, Cancelled) else public(job, trouble)[0] if trouble else ""
    about: dict[str, str | int | float] = {"job_id": job.id, "model": job.request.model, "dialect": job.dialect}
    about |= {"worker": worker, "attempt": job.attempts}
    if code:
        about["error"] = code
    tracing.tell(
        Stretch("job", job.started_at, time.time()),
        timings.stretches if isinstance(timings, Timings) else [],
        about,
        parent=parent,
        before=Stretch("queued", job.created_at, job.started_at),
    )
