"""`GET /metrics`: the queue's numbers for Prometheus, read from Redis when asked. No key, no prompt, no owner in it."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from polyreel import metrics
from polyreel.job import JobStatus
from polyreel.records import OPEN, SECONDS
from server.services import services

router = APIRouter()

_ENDS = tuple(status.value for status in JobStatus if status.is_terminal)


@router.get("/metrics")
async def get_metrics(request: Request) -> Response:
    """Answer in Prometheus' text format; 503 in the fallback dialect's shape while Redis is away."""
    shared = services(request)
    workers = len(await shared.workers())
    async with shared.gate.asking():
        counts = {str(name): int(value) for name, value in (await shared.reader.hgetall(metrics.COUNTS)).items()}
        seconds = {str(model): float(value) for model, value in (await shared.reader.hgetall(SECONDS)).items()}
        open_jobs = await shared.reader.zcard(OPEN)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(counts, seconds, open_jobs, workers))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Numbers(Collector):
    """Hands what was read to prometheus-client."""

    def __init__(self, counts: dict[str, int], seconds: dict[str, float], open_jobs: int, workers: int) -> None:
        self._counts, self._seconds, self._open, self._workers = counts, seconds, open_jobs, workers

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            metrics.SUBMITTED.name, metrics.SUBMITTED.help, value=self._counts.get("submitted", 0)
        )
        yield CounterMetricFamily(metrics.REQUEUED.name, metrics.REQUEUED.help, value=self._counts.get("requeued", 0))
        ended = CounterMetricFamily(metrics.ENDED.name, metrics.ENDED.help, labels=[metrics.ENDED.label])
        for status in _ENDS:
            ended.add_metric([status], self._counts.get(status, 0))
        yield ended
        yield GaugeMetricFamily(metrics.OPEN.name, metrics.OPEN.help, value=self._open)
        yield GaugeMetricFamily(metrics.WORKERS.name, metrics.WORKERS.help, value=self._workers)
        mean = GaugeMetricFamily(metrics.SECONDS.name, metrics.SECONDS.help, labels=[metrics.SECONDS.label])
        for model, value in sorted(self._seconds.items()):
            mean.add_metric([model], value)
        yield mean
