"""Where a job stands and when it will be done, for everybody who polls.

What waits, what runs and what was measured is read at most once a second and shared by all polls of a process, so that
a poll costs the same number of calls however much waits. A job's own place is asked for each time. The rules are those
of `polyreel.estimates`; here they get their numbers.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import redis.asyncio
import structlog

from polyreel.admission import Rates
from polyreel.catalogue import Catalogue
from polyreel.durations import own_seconds, remaining_s, seconds_key
from polyreel.estimates import Ahead, Estimate, Line, Running, Snapshot, WorkerView, estimate, estimates
from polyreel.job import JobStatus, VideoJob
from polyreel.leases import SWAPS, models_of
from polyreel.records import RATES, RESIDENTS, SECONDS, SHAPES, WORKER_PREFIX, StoredJob, job_key, parse, parse_rates
from polyreel.request import VideoRequest
from polyreel.scheduling import DEFAULT_SWAP_S, Rule
from server.gate import Gate

log = structlog.get_logger()

#: For how long what was read is believed at least, seconds; and for how many times the seconds that it takes to work it
#: out, so that a queue of any length costs a twentieth of a process at most.
_FRESH_S, _FRESH_FACTOR = 1.0, 20.0

#: Records that are read at once: parsing them holds the event loop for a few milliseconds.
_CHUNK = 100

#: The states in which a job is over, as its record has them.
_ENDS = {status.value for status in JobStatus if status.is_terminal}

#: Up to so many jobs before it, one that is newer than what was read is estimated by itself.
_FEW = 32


@dataclass(frozen=True, slots=True)
class _Facts:
    """What never changes about a waiting job.

    Args:
        request: None when this version cannot read it: how long the job takes is unknown then.
        seconds_key: "" likewise.
        batch_key: "" likewise.
        created_at: on Redis' clock; None when it cannot be read.
    """

    request: VideoRequest | None
    seconds_key: str
    batch_key: str
    created_at: float | None

    def waited_s(self, at: float) -> float:
        """Return the seconds since it was submitted; 0.0 where that is unknown."""
        return 0.0 if self.created_at is None else at - self.created_at


@dataclass(frozen=True, slots=True)
class _Held:
    """A job that a worker has.

    Args:
        job: its record, None when this version cannot read it.
    """

    job_id: str
    worker: str
    job: VideoJob | None


@dataclass
class _View:
    """The queue as it was at `at`, on Redis' clock, read at `read_at` on ours (monotonic).

    Args:
        orders: model to its waiting jobs, the next one first.
        facts: of each of them.
        running: jobs that workers have.
        mean_s, rates, swap_s: what was learned, by model.
        measured_s: likewise, by `seconds_key`.
        cost_s: what reading and estimating took.
    """

    read_at: float
    at: float
    orders: Mapping[str, Sequence[str]]
    facts: Mapping[str, _Facts]
    running: Sequence[_Held]
    workers: Sequence[WorkerView]
    mean_s: Mapping[str, float]
    measured_s: Mapping[str, float]
    rates: Mapping[str, Rates]
    swap_s: Mapping[str, float]
    cost_s: float = 0.0
    lines: dict[str, _ModelLine] = field(default_factory=dict)
    own: dict[str, float | None] = field(default_factory=dict)

    @property
    def is_fresh(self) -> bool:
        """Whether this is good enough to go by."""
        return time.monotonic() - self.read_at < max(_FRESH_S, _FRESH_FACTOR * self.cost_s)


class Waiting:
    """Estimates for one process.

    Args:
        reader: asynchronous client that speaks text.
        rule: how workers choose between models.
        capacity: models that a worker keeps in memory.
    """

    def __init__(
        self, reader: redis.asyncio.Redis, gate: Gate, catalogue: Catalogue, rule: Rule, capacity: int
    ) -> None:
        self._reader, self._gate, self._catalogue = reader, gate, catalogue
        self._rule, self._capacity = rule, capacity
        self._view: _View | None = None
        self._reading = asyncio.Lock()

    async def estimate(self, stored: StoredJob) -> Estimate:
        """Return where a job stands, by its record as it was just read.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        job = stored.job
        if job.status.is_terminal:
            return Estimate(0, 0.0)
        async with self._gate.asking():
            place = await self._reader.zrank(f"polyreel:ready:{job.request.model}", job.id)
            view = await self._current()
        if place is None:  # somebody has it, or has just taken it
            return Estimate(0, self._left(view, job))
        own_s = self._own_seconds(view, job.request, seconds_key(job.request))
        line = self._line(view, job.request.model)
        return Estimate(int(str(place)), line.eta_s(job.id, int(str(place)), own_s))

    async def _current(self) -> _View:
        """Return what was read lately. While one poll reads anew, the others go by what there is."""
        view = self._view
        if view and (view.is_fresh or self._reading.locked()):
            return view
        async with self._reading:
            if self._view is None or self._view is view:
                self._view = await self._read()
            return self._view

    async def _read(self) -> _View:
        began = time.monotonic()
        models = sorted(str(model) for model in await self._reader.smembers("polyreel:models"))
        async with self._reader.pipeline(transaction=False) as pipeline:
            pipeline.time()
            for name in (SECONDS, SHAPES, RATES, SWAPS):
                pipeline.hgetall(name)
            pipeline.hkeys(RESIDENTS)
            for model in models:
                pipeline.zrange(f"polyreel:ready:{model}", 0, -1)
            now, means, shapes, rates, swaps, names, *orders = await pipeline.execute()
        said = await self._reader.mget([WORKER_PREFIX + name for name in names]) if names else []
        about = {name: json.loads(text) for name, text in zip(names, said, strict=True) if text}
        known_rates = {model: parse_rates(text) for model, text in rates.items()}
        view = _View(
            read_at=began,
            at=now[0] + now[1] / 1e6,
            orders={model: order for model, order in zip(models, orders, strict=True) if order},
            facts=await self._facts(job_id for order in orders for job_id in order),
            running=await self._running(about),
            workers=[self._worker(name, one) for name, one in about.items()],
            mean_s={model: float(value) for model, value in means.items()},
            measured_s={name: float(value) for name, value in shapes.items()},
            rates={model: value for model, value in known_rates.items() if value},
            swap_s={model: float(value) for model, value in swaps.items()},
        )
        view.cost_s = time.monotonic() - began
        return view

    async def _facts(self, job_ids: Iterable[str]) -> dict[str, _Facts]:
        """Return what never changes about waiting jobs; only those that are new are read."""
        known = self._view.facts if self._view else {}
        wanted = list(job_ids)
        new = [job_id for job_id in wanted if job_id not in known]
        facts = {job_id: known[job_id] for job_id in wanted if job_id in known}
        for start in range(0, len(new), _CHUNK):
            async with self._reader.pipeline(transaction=False) as pipeline:
                for job_id in new[start : start + _CHUNK]:
                    pipeline.hmget(job_key(job_id), "request", "batch_key", "created_at")
                rows = await pipeline.execute()
            for job_id, (request, batch_key, created_at) in zip(new[start : start + _CHUNK], rows, strict=True):
                if request:  # else it has just gone
                    facts[job_id] = _read_facts(job_id, request, batch_key or "", created_at)
        return facts

    async def _running(self, about: Mapping[str, Any]) -> list[_Held]:
        """Return the jobs that heartbeats name and that have not ended. Any: their JSON."""
        pairs = [(name, job_id) for name, one in about.items() for job_id in one.get("jobs", ())]
        if not pairs:
            return []
        async with self._reader.pipeline(transaction=False) as pipeline:
            for _, job_id in pairs:
                pipeline.hgetall(job_key(job_id))
            rows = await pipeline.execute()
        return [
            _Held(job_id, name, _read_job(row))
            for (name, job_id), row in zip(pairs, rows, strict=True)
            if "request" in row and row.get("status") not in _ENDS
        ]

    def _worker(self, name: str, about: Mapping[str, Any]) -> WorkerView:  # Any: JSON of a heartbeat
        resident = tuple(models_of(about))
        capacity = max(len(resident), about.get("capacity", self._capacity))
        return WorkerView(name, frozenset(about.get("models", ())), resident, capacity, about.get("held_s", 0.0))

    async def own_s(self, request: VideoRequest) -> float | None:
        """Return how long a job would take by itself, None for unknown.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        async with self._gate.asking():
            view = await self._current()
        return self._own_seconds(view, request, seconds_key(request))

    def _own_seconds(self, view: _View, request: VideoRequest | None, key: str) -> float | None:
        """Return how long a job takes by itself: as its shape took, by its work, else as its model's jobs take."""
        if request is None:
            return None
        if key not in view.own:
            entry = self._catalogue.models.get(request.model)  # an older job's model may not be served any more
            own_s = own_seconds(entry, request, view.measured_s, view.rates.get(request.model))
            view.own[key] = view.mean_s.get(request.model) if own_s is None else own_s
        return view.own[key]

    def _left(self, view: _View, job: VideoJob | None) -> float | None:
        """Return the seconds until a job is done that a worker has; None for unknown."""
        if job is None:
            return None
        loading_s = 0.0
        if job.status in (JobStatus.QUEUED, JobStatus.LOADING):
            loaded = next((worker.resident for worker in view.workers if worker.name == job.worker), ())
            if job.request.model not in loaded:
                swap_s = view.swap_s.get(job.request.model, DEFAULT_SWAP_S)
                loading_s = swap_s - max(0.0, view.at - (job.started_at or view.at))
        return remaining_s(self._own_seconds(view, job.request, seconds_key(job.request)), job.progress, loading_s)

    def _line(self, view: _View, model: str) -> _ModelLine:
        if model not in view.lines:
            began = time.monotonic()
            own = {job_id: self._own_seconds(view, f.request, f.seconds_key) for job_id, f in view.facts.items()}
            order = [
                Ahead(job_id, own[job_id], f.waited_s(view.at), f.batch_key)
                for job_id in view.orders.get(model, ())
                if (f := view.facts.get(job_id))
            ]
            snapshot = Snapshot(
                model=model,
                order=order,
                running=[Running(held.job_id, held.worker, self._left(view, held.job)) for held in view.running],
                workers=view.workers,
                others={name: _other(view, ids, own) for name, ids in view.orders.items() if name != model},
                swap_s=view.swap_s,
                rule=self._rule,
            )
            view.lines[model] = _ModelLine(snapshot)
            view.cost_s += time.monotonic() - began
        return view.lines[model]


def _other(view: _View, job_ids: Sequence[str], own: Mapping[str, float | None]) -> Line:
    known = [seconds for job_id in job_ids if (seconds := own.get(job_id)) is not None]
    head, last = (view.facts.get(job_id) for job_id in (job_ids[0], job_ids[-1]))
    return Line(
        len(job_ids),
        sum(known) / len(known) * len(job_ids) if known else None,
        head.waited_s(view.at) if head else 0.0,
        last.waited_s(view.at) if last else 0.0,
    )


def _read_facts(job_id: str, request: str, batch_key: str, created_at: object) -> _Facts:
    """Read a waiting job's record. One that cannot be read, perhaps of a newer version, is unknown, not an error: it
    would break the answers about all others."""
    submitted_at = _read_time(created_at)
    try:
        parsed = VideoRequest.from_dict(json.loads(request))
        key = seconds_key(parsed)
    except Exception as err:  # whatever is wrong in it
        log.warning("record of a waiting job cannot be read", job_id=job_id, reason=type(err).__name__)
        return _Facts(None, "", "", submitted_at)
    return _Facts(parsed, key, batch_key, submitted_at)


def _read_time(text: object) -> float | None:
    """Return seconds since the epoch as a record has them; None for what is no time."""
    try:
        seconds = float(str(text))
    except ValueError:
        return None
    return seconds if isfinite(seconds) else None


def _read_job(row: Mapping[Any, Any]) -> VideoJob | None:
    """Read the record of a job that a worker has; None when that cannot be done. Any: see `polyreel.records.parse`."""
    try:
        stored = parse(row)
        if stored:
            seconds_key(stored.job.request)
    except Exception:  # whatever is wrong in it; its worker says what
        return None
    return stored.job if stored else None


class _ModelLine:
    """The waiting jobs of one model in one view, and when each is done."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._known = estimates(snapshot)

    def eta_s(self, job_id: str, place: int, own_s: float | None) -> float | None:
        """Return the seconds until a waiting job is done, None for unknown.

        Args:
            place: where it stands now, for a job that came after this view.
            own_s: what it takes by itself.
        """
        if job_id in self._known or own_s is None:
            return self._known[job_id].eta_s if job_id in self._known else None
        order = self._snapshot.order[:place]
        if len(order) <= _FEW:
            return estimate(job_id, replace(self._snapshot, order=[*order, Ahead(job_id, own_s)])).eta_s
        # Behind many: playing them again for every new job would cost more than it tells.
        before = self._known[order[-1].job_id].eta_s
        servers = sum(self._snapshot.model in worker.models for worker in self._snapshot.workers)
        return None if before is None else before + own_s / max(1, servers)
