"""`GET /metrics`: the queue's numbers for Prometheus, read from Redis when asked. No key, no prompt, no owner in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from polyreel import metrics
from polyreel.job import JobStatus
from polyreel.leases import SWAPS
from polyreel.records import OPEN, SECONDS
from server.couriers import Couriers, couriers
from server.live_workers import listed
from server.openapi import documents
from server.services import Services, services

router = APIRouter()

_ENDS = tuple(status.value for status in JobStatus if status.is_terminal)


@dataclass(frozen=True)
class _Numbers:
    """What was read from Redis at one moment; mappings are by model, `counts` by counter."""

    counts: Mapping[str, int]
    open_jobs: int
    claimed: int
    workers: int
    couriers: Couriers
    waiting: Mapping[str, int]
    loaded: Mapping[str, int]
    seconds: Mapping[str, float]
    swaps: Mapping[str, float]


@router.get("/metrics", **documents(answer_media="text/plain", keys=()))
async def get_metrics(request: Request) -> Response:
    """Answer in Prometheus' text format; 503 in the fallback dialect's shape while Redis is away."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(await _read(services(request))))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _read(shared: Services) -> _Numbers:
    workers = await shared.workers()
    delivering = await couriers(shared)
    async with shared.gate.asking():
        models = sorted(str(model) for model in await shared.reader.smembers("polyreel:models"))
        async with shared.reader.pipeline(transaction=False) as pipeline:
            for name in (metrics.COUNTS, SECONDS, SWAPS):
                pipeline.hgetall(name)
            for name in (OPEN, "polyreel:leases", *(f"polyreel:ready:{model}" for model in models)):
                pipeline.zcard(name)
            counts, seconds, swaps, open_jobs, claimed, *waiting = await pipeline.execute()
    loaded = Counter(str(model) for about in workers for model in listed(about.get("loaded")))
    return _Numbers(
        counts={name: int(value) for name, value in counts.items()},
        open_jobs=open_jobs,
        claimed=claimed,
        workers=len(workers),
        couriers=delivering,
        waiting=dict(zip(models, waiting, strict=True)),
        loaded=loaded,
        seconds={model: float(value) for model, value in seconds.items()},
        swaps={model: float(value) for model, value in swaps.items()},
    )


class _Collected(Collector):
    """Hands what was read to prometheus-client."""

    def __init__(self, numbers: _Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        n = self._numbers
        for about, name in (
            (metrics.SUBMITTED, "submitted"),
            (metrics.REQUEUED, "requeued"),
            (metrics.DELIVERED, "webhooks_delivered"),
            (metrics.GIVEN_UP, "webhooks_failed"),
            (metrics.RETRIED, "webhooks_retried"),
        ):
            yield CounterMetricFamily(about.name, about.help, value=n.counts.get(name, 0))
        ended = CounterMetricFamily(metrics.ENDED.name, metrics.ENDED.help, labels=[metrics.ENDED.label])
        for status in _ENDS:
            ended.add_metric([status], n.counts.get(status, 0))
        yield ended
        for about, value in (
            (metrics.OPEN, n.open_jobs),
            (metrics.CLAIMED, n.claimed),
            (metrics.WORKERS, n.workers),
            (metrics.COURIERS, n.couriers.alive),
            (metrics.LATE, n.couriers.late_s),
        ):
            yield GaugeMetricFamily(about.name, about.help, value=value)
        for about, values in (
            (metrics.WAITING, n.waiting),
            (metrics.LOADED, n.loaded),
            (metrics.SECONDS, n.seconds),
            (metrics.SWAPS, n.swaps),
        ):
            family = GaugeMetricFamily(about.name, about.help, labels=[about.label])
            for model, by_model in sorted(values.items()):
                family.add_metric([model], by_model)
            yield family
