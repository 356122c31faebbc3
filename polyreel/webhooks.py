"""Webhooks that wait to be delivered: who takes them, how attempts went, when the next one is due.

    polyreel:webhooks               sorted set of receivers (host and port) by when the first of their line is due
    polyreel:webhooks:line:{r}      sorted set of the job ids whose webhooks wait for a receiver, by when they are due
    polyreel:webhooks:leases        sorted set of "id receiver" by the deadline of the courier that delivers it
    polyreel:webhooks:proven        sorted set of receivers by when they last took one, while none failed since
    polyreel:webhooks:couriers      sorted set of couriers by when they last came for work
    polyreel:webhooks:taken:{c}     hash, what a courier took last, for when the reply is lost
    polyreel:webhook:{id}           hash: state, attempts (all), tries (since it was last asked for), next_at
    polyreel:webhook:log:{id}       list of the last attempts, JSON

The step that ends a job puts its webhook into its receiver's line (`finish` in lua/common.lua), so none is missing. A
courier takes one under a lease: when it dies, the lease runs out and another takes it, which the receiver sees as the
same message a second time. So a message comes at least once, always under the same id. Nothing of it is kept beside the
record: it is rendered anew for each attempt, with links that are good, and goes when the record goes.

All times are of Redis' clock. This module knows no HTTP; `server.courier` delivers.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import redis

from polyreel.errors import NotDeliverable, UnknownJob
from polyreel.scripts import arguments, script

RECEIVERS = "polyreel:webhooks"
COURIERS = "polyreel:webhooks:couriers"

#: Pauses before each try, seconds: 10 tries in 75.6 hours. Source: Standard Webhooks, "Delivery", which is more than
#: Novita (five retries) and ModelsLab (best effort) promise.
SCHEDULE_S = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)

#: Deliveries to one receiver at the same time, by all couriers.
PER_RECEIVER = 2

#: Deliveries of one owner at the same time, by all couriers: whose receivers take one message and hang at the next is
#: not to have every hand.
PER_OWNER = 28

#: Longest time of an attempt, from the receiver's name to its reply, seconds.
ATTEMPT_S = 15.0

#: How long a courier has a delivery, seconds. After its death it is delivered again; before, no other has it.
LEASE_S = 2 * ATTEMPT_S

#: A courier that has not come for work for this long is gone, seconds.
COURIER_TTL_S = 15

#: How long a receiver that took a message is known as one that does, seconds.
PROVEN_S = 86400

#: Attempts that the log of a job keeps, the newest.
LOG_LENGTH = 50

#: What becomes of a delivery by an attempt: done; no more tries; tried again.
Outcome = Literal["delivered", "failed", "retry"]


@dataclass(frozen=True, slots=True)
class Taken:
    """A delivery that this courier has.

    Args:
        job_id: whose end is told.
        attempt: counts all attempts, from 1.
        attempt_of_round: counts those since the end, or since somebody asked for it again, from 1.
        receiver: host and port.
        is_proven: whether the receiver took its last message, not long ago.
    """

    job_id: str
    attempt: int
    attempt_of_round: int
    receiver: str
    is_proven: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one attempt came to.

    Args:
        attempt: of `Taken`.
        status: HTTP status of the reply, None when none came.
        error: why it is no success, "" for one.
        ms: how long it took, milliseconds.
        at: when it was over, 0.0 while that is not known.
        next_at: when the next one is due, None for none.
    """

    attempt: int
    status: int | None
    error: str
    ms: int
    at: float = 0.0
    next_at: float | None = None


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What became of a job's webhook.

    Args:
        state: "pending", "delivered" or "failed" (given up).
        attempts: how many there were.
        next_at: when the next one is due; None when there is none, or it is under way.
        log: the last attempts, the oldest first.
    """

    state: str = "pending"
    attempts: int = 0
    next_at: float | None = None
    log: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class Hands:
    """How much a courier can take now.

    Args:
        free: deliveries in all.
        free_unproven: of those, to receivers that are not `Taken.is_proven`.
    """

    free: int
    free_unproven: int


@dataclass
class Webhooks:
    """The webhooks of one Redis; safe to use from several threads.

    Args:
        client: from `polyreel.records.connect`.
        lease_s: how long a courier has what it has taken, seconds.
        tries: how many tries a delivery gets.
    """

    client: redis.Redis
    lease_s: float = LEASE_S
    tries: int = len(SCHEDULE_S)
    _take: Any = field(init=False, repr=False)  # Any: redis-py's Script, typed for both of its clients
    _note: Any = field(init=False, repr=False)
    _redeliver: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._take = script(self.client, "deliveries_take")
        self._note = script(self.client, "deliveries_note")
        self._redeliver = script(self.client, "deliveries_redeliver")

    def take(self, courier: str, hands: Hands) -> list[Taken]:
        """Take deliveries that are due; also says that this courier lives. A lost reply costs nothing.

        Returns:
            Never more than `PER_RECEIVER` of one receiver and `PER_OWNER` of one owner, those that other couriers have
            included. A delivery whose job was deleted or has expired is dropped, as is one that no courier survived as
            often as it may be tried.
        """
        terms = {
            "courier": courier,
            "call": uuid.uuid4().hex,
            "courier_s": COURIER_TTL_S,
            "free": hands.free,
            "free_unproven": hands.free_unproven,
            "per_receiver": PER_RECEIVER,
            "per_owner": PER_OWNER,
            "lease_s": self.lease_s,
            "proven_s": PROVEN_S,
            "tries": self.tries,
        }
        said = [str(part) for part in self._take(args=arguments(terms))]
        return [
            Taken(said[n], int(said[n + 1]), int(said[n + 2]), said[n + 3], said[n + 4] == "1")
            for n in range(0, len(said), 5)
        ]

    def note(self, taken: Taken, attempt: Attempt, outcome: Outcome, after_s: float = 0.0) -> str:
        """Write down how an attempt went. Twice is the same as once.

        Args:
            outcome: what this attempt says of the delivery.
            after_s: pause before the next try, seconds, for "retry".

        Returns:
            The delivery's state now: "delivered" also when an older attempt turned out to have succeeded.
        """
        terms = {
            "id": taken.job_id,
            "receiver": taken.receiver,
            "outcome": outcome,
            "after_s": after_s,
            "proven_s": PROVEN_S,
            "log_length": LOG_LENGTH,
        }
        entry = {name: value for name, value in asdict(attempt).items() if name not in ("at", "next_at")}
        return str(self._note(args=arguments(terms, json.dumps(entry))))

    def redeliver(self, job_id: str) -> None:
        """Deliver a webhook again, now and with all its tries, whatever became of it; it keeps its id.

        Raises:
            UnknownJob: there is no such job.
            NotDeliverable: it has no webhook, or has not ended.
        """
        word = str(self._redeliver(args=arguments({"id": job_id})))
        if word == "":
            raise UnknownJob("No job has this id.")
        if word == "none":
            raise NotDeliverable("This job was submitted without a webhook, so there is nothing to deliver.")
        if word == "open":
            raise NotDeliverable("This job has not ended yet; its webhook is delivered when it does.")

    def deliveries(self, job_id: str) -> Deliveries:
        """Return what became of the webhook of a job that has ended."""
        with self.client.pipeline(transaction=True) as pipeline:
            pipeline.hmget(f"polyreel:webhook:{job_id}", "state", "attempts", "next_at")
            pipeline.lrange(f"polyreel:webhook:log:{job_id}", 0, -1)
            (state, attempts, next_at), entries = pipeline.execute()
        log = tuple(_attempt(json.loads(entry)) for entry in entries)
        return Deliveries(state or "pending", int(attempts or 0), float(next_at) if next_at else None, log)


def _attempt(entry: dict[str, Any]) -> Attempt:
    """Read an entry of the log. Any: JSON; what a newer version wrote beside is left out."""
    names = set(Attempt.__dataclass_fields__)
    return Attempt(**{"status": None, **{name: value for name, value in entry.items() if name in names}})


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a delivery is tried again.

    Args:
        pauses_s: before each try, seconds; their number is that of the tries.
        jitter: each pause is up to this part longer or shorter, so that what failed together does not come together.
        scale: all pauses are multiplied by this (tests run a schedule of days in seconds).
    """

    pauses_s: Sequence[float] = SCHEDULE_S
    jitter: float = 0.2
    scale: float = 1.0

    def after_s(self, tried: int, draw: float) -> float | None:
        """Return the pause after so many tries, seconds; None when there are no more.

        Args:
            tried: 1 or more.
            draw: uniform in 0..1.
        """
        if tried >= len(self.pauses_s):
            return None
        return self.pauses_s[tried] * self.scale * (1 + self.jitter * (2 * draw - 1))
