"""What is counted and measured, under which names; how it is shown is the API's business (`server/metrics.py`).

Counters live in Redis and are raised in the same Lua step as the change that they count, so they are exact over any
number of processes and survive `kill -9` of each.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Hash in Redis: field of a counter to its value.
COUNTS = "polyreel:counts"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: as Prometheus shows it, unit at the end.
        help: one line.
        label: name of its one label, or "" for none.
    """

    name: str
    help: str
    label: str = ""


SUBMITTED = Metric("polyreel_jobs_submitted", "Jobs acknowledged.")
ENDED = Metric("polyreel_jobs_ended", "Jobs that reached an end, by which.", "status")
REQUEUED = Metric("polyreel_jobs_requeued", "Times that a job was taken from a dead worker and put back.")
OPEN = Metric("polyreel_jobs_open", "Jobs that have not ended, waiting ones among them.")
WAITING = Metric("polyreel_jobs_waiting", "Jobs that no worker has yet, by model.", "model")
CLAIMED = Metric("polyreel_jobs_claimed", "Jobs that workers have.")
WORKERS = Metric("polyreel_workers", "Workers that live.")
LOADED = Metric("polyreel_workers_loaded", "Workers that have a model in memory, by model.", "model")
SECONDS = Metric("polyreel_job_seconds_mean", "Moving mean of the seconds that a job takes, by model.", "model")
SWAPS = Metric("polyreel_load_seconds_mean", "Moving mean of the seconds that loading takes, by model.", "model")
DELIVERED = Metric("polyreel_webhooks_delivered", "Webhooks that their receiver took.")
GIVEN_UP = Metric("polyreel_webhooks_failed", "Webhooks that were given up.")
RETRIED = Metric("polyreel_webhooks_retried", "Attempts to deliver a webhook that failed and are made again.")
LATE = Metric("polyreel_webhooks_late_seconds", "How long the webhook that is most overdue has been due, 0 for none.")
COURIERS = Metric("polyreel_couriers", "Couriers that live.")
