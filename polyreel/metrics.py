"""What is counted and measured, under which names; how it is shown is the API's business (`server/metrics.py`).

What concerns jobs lies in Redis and changes in the same Lua step as the job: exact over any number of processes, and
`kill -9` of any loses nothing. Two hashes hold it:

    polyreel:counts   totals: submitted, requeued, each end, each outcome of a webhook
    polyreel:series   by labels: `series|label|…` to a count; of a histogram `series|bucket|label|…`, where a bucket is
                      its upper bound, "inf", or "sum": the sum of all values in whole millionths

The totals are older than the labels: what they have more than the labels was counted by an earlier version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

#: Hashes in Redis.
COUNTS = "polyreel:counts"
SERIES = "polyreel:series"

#: What a model is called that the catalogue does not have (any more), a dialect that is not known, a path that is no
#: route: labels must not grow with what clients or operators make up.
OTHER = "other"

#: The stages of a job that are measured, in their order; see `polyreel.job.VideoJob.timings`.
STAGES = ("load", "text_encoding", "denoising", "decoding", "policy", "encode", "store")

Kind = Literal["counter", "gauge", "histogram"]

_MILLIONTHS = 1e6


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: as Prometheus shows it, unit at the end; the library adds `_total` to a counter's.
        help: one line.
        kind: as Prometheus means it.
        labels: names of its labels; where it lies in `SERIES`, the model is the last.
        buckets: upper bounds of a histogram, the smallest first; one without bound follows.
        series: name of its series in `SERIES`, "" for none.
        total: name of its total in `COUNTS`, "" for none.
    """

    name: str
    help: str
    kind: Kind = "counter"
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    series: str = ""
    total: str = ""

    @property
    def shown(self) -> str:
        """The name of its samples, as a query names them."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


_MODEL, _WORKER = ("model",), ("worker",)
_SHORT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_FEW = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)

# Jobs, from Redis
SUBMITTED = Metric(
    "polyreel_jobs_submitted", "Jobs acknowledged.", labels=("dialect", "model"), series="submitted", total="submitted"
)
ENDED = Metric(
    "polyreel_jobs_ended",
    "Jobs that reached an end, by which: succeeded, failed or cancelled.",
    labels=("dialect", "status", "model"),
    series="ended",
)
REQUEUED = Metric(
    "polyreel_jobs_requeued", "Times that a job was taken from a dead worker and put back.", total="requeued"
)
QUOTA_REMOVED = Metric(
    "polyreel_jobs_removed_by_quota",
    "Ended jobs that went before their retention was over, for `disk_quota_gb`.",
    total="quota_removed",
)
OPEN = Metric("polyreel_jobs_open", "Jobs that have not ended, waiting ones among them.", "gauge")
WAITING = Metric("polyreel_jobs_waiting", "Jobs that no worker has yet, by model.", "gauge", _MODEL)
CLAIMED = Metric("polyreel_jobs_claimed", "Jobs that workers have.", "gauge")
WAITED = Metric(
    "polyreel_job_wait_seconds",
    "How long jobs waited from their submit until a worker first took them.",
    "histogram",
    _MODEL,
    _LONG,
    "wait",
)
STAGE = Metric(
    "polyreel_stage_seconds",
    "Seconds that each stage of a succeeded job took, its share where several ran in one call.",
    "histogram",
    ("stage", "model"),
    _LONG,
    "stage",
)
STEPS = Metric(
    "polyreel_steps",
    "Denoising steps done, as they are done; those that a second attempt repeats are work too.",
    labels=_MODEL,
    series="steps",
)
STEP_SECONDS = Metric(
    "polyreel_step_seconds", "Mean seconds per denoising step of a succeeded job.", "histogram", _MODEL, _SHORT, "step"
)
BATCH = Metric(
    "polyreel_batch_size", "How many jobs a worker took into one pipeline call.", "histogram", _MODEL, _FEW, "batch"
)
SECONDS = Metric("polyreel_job_seconds_mean", "Moving mean of the seconds that a job takes, by model.", "gauge", _MODEL)

# Workers, from Redis
WORKERS = Metric("polyreel_workers", "Workers that live.", "gauge")
LOADED = Metric("polyreel_workers_loaded", "Workers that have a model in memory, by model.", "gauge", _MODEL)
LOADS = Metric(
    "polyreel_model_loads",
    "Times that a worker brought a model into memory: swaps, where another had to go.",
    labels=_MODEL,
    series="loads",
)
SWAPS = Metric(
    "polyreel_load_seconds_mean", "Moving mean of the seconds that loading takes, by model.", "gauge", _MODEL
)
GPU_USED = Metric("polyreel_gpu_memory_used_bytes", "Memory of a worker's GPU in use, by whomever.", "gauge", _WORKER)
GPU_TOTAL = Metric("polyreel_gpu_memory_total_bytes", "Memory of a worker's GPU.", "gauge", _WORKER)
GPU_BUSY = Metric("polyreel_gpu_utilization_ratio", "How busy a worker's GPU is, 0 to 1.", "gauge", _WORKER)
GPU_HEAT = Metric("polyreel_gpu_temperature_celsius", "Temperature of a worker's GPU.", "gauge", _WORKER)
GPU_POWER = Metric("polyreel_gpu_power_watts", "Power that a worker's GPU draws.", "gauge", _WORKER)

# Results and webhooks
CACHE_HITS = Metric(
    "polyreel_result_cache_hits",
    "Requests that were answered with the video of an equal one before.",
    series="result_cache_hits",
)
STORAGE_FREE = Metric(
    "polyreel_storage_free_bytes", "Free space of the storage; no sample where it has no known end.", "gauge"
)
STORAGE_UP = Metric("polyreel_storage_up", "1 while this process can write to the storage and read back.", "gauge")
DELIVERED = Metric("polyreel_webhooks_delivered", "Webhooks that their receiver took.", total="webhooks_delivered")
GIVEN_UP = Metric("polyreel_webhooks_failed", "Webhooks that were given up.", total="webhooks_failed")
RETRIED = Metric(
    "polyreel_webhooks_retried",
    "Attempts to deliver a webhook that failed and are made again.",
    total="webhooks_retried",
)
LATE = Metric(
    "polyreel_webhooks_late_seconds", "How long the webhook that is most overdue has been due, 0 for none.", "gauge"
)
COURIERS = Metric("polyreel_couriers", "Couriers that live.", "gauge")

# This API process
REDIS_UP = Metric("polyreel_redis_up", "1 while Redis answers, or only what needs none is shown.", "gauge")
REQUESTS = Metric(
    "polyreel_http_requests", "Requests that this process has answered.", labels=("route", "method", "status")
)
REQUEST_SECONDS = Metric(
    "polyreel_http_request_seconds",
    "Seconds until the answer to a request began, so that a stream counts as quick as it starts.",
    "histogram",
    ("route",),
    (0.005, *_SHORT),
)
INFO = Metric("polyreel_info", "1, with the version of this process.", "gauge", ("version",))

#: Every metric, in the order in which it is shown. The parts are sections of docs/metrics.md.
SECTIONS: Mapping[str, tuple[Metric, ...]] = {
    "Jobs": (
        SUBMITTED, ENDED, REQUEUED, OPEN, WAITING, CLAIMED, WAITED, STAGE, STEPS, STEP_SECONDS, BATCH, SECONDS,
    ),
    "Workers": (WORKERS, LOADED, LOADS, SWAPS, GPU_USED, GPU_TOTAL, GPU_BUSY, GPU_HEAT, GPU_POWER),
    "Results": (CACHE_HITS, QUOTA_REMOVED, STORAGE_FREE, STORAGE_UP),
    "Webhooks": (DELIVERED, GIVEN_UP, RETRIED, LATE, COURIERS),
    "This API process": (REDIS_UP, REQUESTS, REQUEST_SECONDS, INFO),
}  # fmt: skip
METRICS: tuple[Metric, ...] = tuple(metric for metrics in SECTIONS.values() for metric in metrics)

Labels = tuple[str, ...]


@dataclass
class Histogram:
    """What was observed under one set of labels.

    Args:
        counts: how many values fell into each bucket, the one without bound last; not cumulative.
        sum: of all values.
    """

    counts: list[int]
    sum: float = 0.0

    @classmethod
    def empty(cls, metric: Metric) -> Histogram:
        """Return one that has seen nothing."""
        return cls([0] * (len(metric.buckets) + 1))

    def observe(self, value: float, buckets: tuple[float, ...]) -> None:
        """Note a value."""
        self.counts[sum(value > bound for bound in buckets)] += 1
        self.sum += value

    def add(self, other: Histogram) -> None:
        """Take in what another one has seen, of the same buckets."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def cumulative(self, buckets: tuple[float, ...]) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus wants them: upper bound, and how many values are at most that."""
        total, said = 0, []
        for bound, count in zip((*map(str, buckets), "+Inf"), self.counts, strict=True):
            total += count
            said.append((bound, float(total)))
        return said


def counted(metric: Metric, series: Mapping[str, str]) -> dict[Labels, int]:
    """Return what `SERIES` holds of a counter, by its labels."""
    return {labels: int(value) for labels, value in _of(metric.series, len(metric.labels), series)}


def observed(metric: Metric, series: Mapping[str, str]) -> dict[Labels, Histogram]:
    """Return what `SERIES` holds of a histogram, by its labels.

    Buckets that an earlier version had are added to the next larger one that is there now.
    """
    found: dict[Labels, Histogram] = {}
    for (bucket, *rest), value in _of(metric.series, len(metric.labels) + 1, series):
        histogram = found.setdefault(tuple(rest), Histogram.empty(metric))
        if bucket == "sum":
            histogram.sum = int(value) / _MILLIONTHS
        else:
            histogram.counts[sum(float(bucket) > bound for bound in metric.buckets)] += int(value)
    return found


def _of(name: str, labels: int, series: Mapping[str, str]) -> Iterator[tuple[Labels, str]]:
    for field, value in series.items():
        # The last label may hold the separator: it is a model's name, which the operator chooses.
        series_name, *rest = field.split("|", labels)
        if series_name == name and len(rest) == labels:
            yield tuple(rest), value


def buckets_of(metrics: Iterable[Metric]) -> dict[str, tuple[float, ...]]:
    """Return the buckets of every histogram in Redis by its series."""
    return {metric.series: metric.buckets for metric in metrics if metric.series and metric.buckets}
