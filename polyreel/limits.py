"""What one API key may ask for, and how much of it has been used; the queue counts (`polyreel/lua`).

Limits are counted by account: a key keeps its account when it is rotated, and keys given by the settings count by their
owner. A submit is held to all of them in the one step that takes it in, so they are exact however many try at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from polyreel.errors import LimitReached


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How much one key may ask for; None is no limit of its own.

    Args:
        requests_per_minute: submits that are taken in a minute, 1 or more; polls are not counted, nor is what is
            refused or was sent before (`Idempotency-Key`). So many at once, then one every 60 / n seconds.
        max_queued: unfinished jobs, 1 or more.
        max_running: jobs that run at the same time, 1 or more; more of them wait and hold nobody else up.
        gpu_seconds_per_day: seconds of a device in a day of UTC: what was used, and what the unfinished jobs and the
            one that is submitted are expected to take. Of those whose length nobody knows yet, one at a time.
        models: catalogue names of the models that it may use; () is all.
        retention_s: how long its ended jobs and their files are kept, seconds, 1 or more; no longer than the server
            keeps any.
    """

    requests_per_minute: int | None = None
    max_queued: int | None = None
    max_running: int | None = None
    gpu_seconds_per_day: float | None = None
    models: tuple[str, ...] = ()
    retention_s: float | None = None

    def kept_s(self, asked_s: float) -> float:
        """Return `VideoJob.keep_s` of a job that asked to be kept so long, 0.0 for as long as the server keeps any."""
        return min((s for s in (asked_s, self.retention_s) if s), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return what is set, as plain JSON (Any: numbers, and a list of names)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v not in (None, ())}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KeyLimits:
        """Read `to_dict` back; what a newer version wrote beside it is left out."""
        known: dict[str, Any] = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**known | {"models": tuple(known.get("models", ()))})


@dataclass(frozen=True, slots=True)
class Usage:
    """What an account has used; from `Services.usage(caller)`, or `Records.usage(account)` in a thread.

    Args:
        day: of UTC, as "2026-11-21", by Redis' clock.
        submits: jobs that were taken in since it began.
        gpu_seconds: seconds of a device that attempts took that ended since it began. A call that several jobs share
            is shared out among them. What runs right now is not in it, but in `reserved_seconds`.
        reserved_seconds: what the unfinished jobs are expected to take; 0 for those of which nothing is known.
        queued: jobs that wait.
        running: jobs that a worker has.
        resets_in_s: seconds until the day ends.
    """

    day: str
    submits: int
    gpu_seconds: float
    reserved_seconds: float
    queued: int
    running: int
    resets_in_s: int


def limit_reached(which: str, limit: float, wait_s: float, expected_s: float) -> LimitReached:
    """Return the error for what the queue refused.

    Args:
        which: "requests_per_minute", "max_queued" or "gpu_seconds_per_day"; "unknown" is the last one too, for a job
            of unknown length.
        limit: the number that was reached.
        wait_s: until it is free again.
        expected_s: what the job is expected to take.
    """
    if which == "gpu_seconds_per_day" and expected_s > limit:
        which = "never"
    retry_after_s = max(1, math.ceil(wait_s - 1e-6))
    words = {"limit": f"{limit:g}", "wait": retry_after_s, "expected": f"{expected_s:.0f}"}
    return LimitReached(_REACHED[which].format(**words), retry_after_s)


_REACHED = {
    "requests_per_minute": "This API key may submit {limit} jobs a minute. Try again in {wait} s.",
    "max_queued": "You have {limit} unfinished jobs, which is all that this server lets one key have. "
    "Wait for one to end, or cancel one.",
    "gpu_seconds_per_day": "This API key may use {limit} seconds of a GPU a day (UTC), and this job with those that "
    "are not finished would take more. The day ends in {wait} s.",
    "unknown": "Nobody knows yet how long this job takes, nor one of yours that is not finished, and this API key may "
    "use {limit} seconds of a GPU a day. Wait for that one to end.",
    "never": "This job is expected to take {expected} seconds of a GPU, and this API key may use {limit} a day. "
    "Ask for fewer frames, steps or pixels.",
}
