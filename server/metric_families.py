"""Hands metrics to prometheus-client, and keeps their labels to the models and dialects that are known here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from polyreel.job import JobStatus
from polyreel.metrics import METRICS, OTHER, Histogram, Labels, Metric

#: The ends of a job.
ENDS = tuple(status.value for status in JobStatus if status.is_terminal)


class Shown(Collector):
    """What one answer shows.

    Args:
        models, dialects: those of this server; the figures of all others are shown as one, `OTHER`.
    """

    def __init__(self, models: Iterable[str], dialects: Iterable[str]) -> None:
        self.models = frozenset(models)
        self._known = {"model": self.models, "dialect": frozenset(dialects), "status": frozenset(ENDS)}
        self._families: dict[str, Family] = {}

    def one(self, metric: Metric, value: float) -> None:
        """Show a metric without labels."""
        self.values(metric, {(): value})

    def counters(self, metric: Metric, values: Mapping[Labels, float]) -> None:
        """Show a counter, from 0 on for all that can come: Prometheus sees no rise in what was not there before."""
        begins: dict[Labels, float] = dict.fromkeys(product(*(self._known[name] for name in metric.labels)), 0)
        self.values(metric, begins | {labels: value for labels, value in values.items() if value})

    def values(self, metric: Metric, values: Mapping[Labels, float]) -> None:
        """Show a counter or a gauge."""
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.help, labels=metric.labels)
        found: dict[Labels, float] = {}
        for labels, value in values.items():
            known = self._bounded(metric, labels)
            found[known] = found.get(known, 0) + value
        for labels, value in sorted(found.items()):
            family.add_metric(labels, value)
        self._families[metric.name] = family

    def histograms(self, metric: Metric, values: Mapping[Labels, Histogram]) -> None:
        """Show a histogram."""
        found: dict[Labels, Histogram] = {}
        for labels, histogram in values.items():
            found.setdefault(self._bounded(metric, labels), Histogram.empty(metric)).add(histogram)
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, histogram in sorted(found.items(), key=lambda item: item[0]):
            family.add_metric(labels, histogram.cumulative(metric.buckets), histogram.sum)
        self._families[metric.name] = family

    def _bounded(self, metric: Metric, labels: Labels) -> Labels:
        bounded = {"model", "dialect"}
        return tuple(
            OTHER if name in bounded and value not in self._known[name] else value
            for name, value in zip(metric.labels, labels, strict=True)
        )

    def collect(self) -> Iterator[Family]:
        """Return what is shown, in the order of the table."""
        return iter([self._families[metric.name] for metric in METRICS if metric.name in self._families])
