"""`GET /metrics`: the queue's numbers for Prometheus, read from Redis when asked, and those of this process.

No key, no prompt, no owner in it. Every API process answers the same of the queue, and its own of HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.core import CollectorRegistry
from prometheus_client.exposition import generate_latest

import polyreel
from polyreel import metrics
from polyreel.errors import QueueUnavailable
from polyreel.leases import SWAPS
from polyreel.metrics import OTHER, Labels, counted, observed
from polyreel.records import OPEN, SECONDS
from server.couriers import Couriers, couriers
from server.http_metrics import HttpMetrics
from server.live_workers import listed
from server.metric_families import ENDS, Shown
from server.openapi import documents
from server.services import Services, services
from server.storage_watch import watch_of

router = APIRouter()

#: Gauges of a GPU: the metric, the field of a heartbeat's `gpu`, and by what to divide it.
_GPU = (
    (metrics.GPU_USED, "memory_used_bytes", 1),
    (metrics.GPU_TOTAL, "memory_total_bytes", 1),
    (metrics.GPU_BUSY, "utilization_percent", 100),
    (metrics.GPU_HEAT, "temperature_c", 1),
    (metrics.GPU_POWER, "power_w", 1),
)


@dataclass(frozen=True)
class _Numbers:
    """What was read from Redis at one moment; mappings are by model, `counts` and `series` as they lie there."""

    counts: Mapping[str, int]
    series: Mapping[str, str]
    open_jobs: int
    claimed: int
    workers: Sequence[Mapping[str, object]]
    couriers: Couriers
    waiting: Mapping[str, int]
    seconds: Mapping[str, float]
    swaps: Mapping[str, float]


@router.get("/metrics", **documents(answer_media="text/plain", keys=()))
async def get_metrics(request: Request) -> Response:
    """Answer in Prometheus' text format; while Redis is away, with what this process knows by itself."""
    shared = services(request)
    shown = Shown(shared.catalogue.models, request.app.state.dialect_settings)
    try:
        _show_queue(await _read(shared), shown)
        shown.one(metrics.REDIS_UP, 1)
    except QueueUnavailable:
        shown.one(metrics.REDIS_UP, 0)
    storage = await watch_of(request).state()
    shown.one(metrics.STORAGE_UP, storage.is_up)
    shown.values(metrics.STORAGE_FREE, {} if storage.free_bytes is None else {(): storage.free_bytes})
    http: HttpMetrics = request.app.state.http_metrics
    shown.values(metrics.REQUESTS, http.requests)
    shown.histograms(metrics.REQUEST_SECONDS, http.seconds)
    shown.values(metrics.INFO, {(polyreel.__version__,): 1})
    registry = CollectorRegistry(auto_describe=False)
    registry.register(shown)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _read(shared: Services) -> _Numbers:
    workers = await shared.workers()
    delivering = await couriers(shared)
    async with shared.gate.asking():
        models = sorted(str(model) for model in await shared.reader.smembers("polyreel:models"))
        async with shared.reader.pipeline(transaction=False) as pipeline:
            for name in (metrics.COUNTS, metrics.SERIES, SECONDS, SWAPS):
                pipeline.hgetall(name)
            for name in (OPEN, "polyreel:leases", *(f"polyreel:ready:{model}" for model in models)):
                pipeline.zcard(name)
            counts, series, seconds, swaps, open_jobs, claimed, *waiting = await pipeline.execute()
    return _Numbers(
        counts={name: int(value) for name, value in counts.items()},
        series=series,
        open_jobs=open_jobs,
        claimed=claimed,
        workers=workers,
        couriers=delivering,
        waiting=dict(zip(models, waiting, strict=True)),
        seconds={model: float(value) for model, value in seconds.items()},
        swaps={model: float(value) for model, value in swaps.items()},
    )


def _show_queue(n: _Numbers, shown: Shown) -> None:
    submitted, ended = counted(metrics.SUBMITTED, n.series), counted(metrics.ENDED, n.series)
    # What was counted before there were labels.
    submitted[OTHER, OTHER] = max(0, n.counts.get("submitted", 0) - sum(submitted.values()))
    for status in ENDS:
        labelled = sum(value for (_, of, _), value in ended.items() if of == status)
        ended[OTHER, status, OTHER] = max(0, n.counts.get(status, 0) - labelled)
    shown.counters(metrics.SUBMITTED, submitted)
    shown.counters(metrics.ENDED, ended)
    for metric in (metrics.STEPS, metrics.LOADS, metrics.CACHE_HITS):
        shown.counters(metric, counted(metric, n.series))
    for metric in (metrics.REQUEUED, metrics.QUOTA_REMOVED, metrics.DELIVERED, metrics.GIVEN_UP, metrics.RETRIED):
        shown.one(metric, n.counts.get(metric.total, 0))
    for metric in (metrics.WAITED, metrics.STAGE, metrics.STEP_SECONDS, metrics.BATCH):
        shown.histograms(metric, observed(metric, n.series))
    shown.one(metrics.OPEN, n.open_jobs)
    shown.one(metrics.CLAIMED, n.claimed)
    shown.one(metrics.WORKERS, len(n.workers))
    shown.one(metrics.COURIERS, n.couriers.alive)
    shown.one(metrics.LATE, n.couriers.late_s)
    loaded = Counter(str(model) for about in n.workers for model in listed(about.get("loaded")))
    shown.values(metrics.LOADED, _by_model(loaded))
    shown.values(metrics.WAITING, _by_model(n.waiting))
    for metric, means in ((metrics.SECONDS, n.seconds), (metrics.SWAPS, n.swaps)):  # means have no sum
        shown.values(metric, _by_model({model: mean for model, mean in means.items() if model in shown.models}))
    for metric, name, unit in _GPU:
        shown.values(metric, dict(_gauges(n.workers, name, unit)))


def _by_model(values: Mapping[str, float]) -> dict[Labels, float]:
    return {(model,): value for model, value in values.items()}


def _gauges(workers: Sequence[Mapping[str, object]], name: str, unit: int) -> Iterator[tuple[Labels, float]]:
    for about in workers:
        gpu = about.get("gpu")
        value = gpu.get(name) if isinstance(gpu, dict) else None
        if isinstance(value, int | float):
            yield (str(about["name"]),), value / unit
