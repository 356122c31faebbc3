"""Who has which job, and until when: claims, leases, and the reaper that takes jobs from the dead.

A claim lasts `lease_s` and is renewed every quarter of that. Deadlines are of Redis' clock and lie in a sorted set of
ours, because RQ judges its own leases by the clock of whoever looks. Any process may reap, as often as it likes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import redis

from polyreel.commands import EXPIRES_S, Orders, parse_orders
from polyreel.durations import towards
from polyreel.job import SCHEMA
from polyreel.records import HEARTBEAT_TTL_S, RESIDENTS, WORKER_DIED, WORKER_PREFIX, ending_terms
from polyreel.rq_entry import iso_now
from polyreel.scheduling import DEFAULT_SWAP_S, Rule
from polyreel.scripts import arguments, script

#: Hash, model name to the moving mean of the seconds that loading it takes.
SWAPS = "polyreel:swaps"


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker has.

    Args:
        job_id: of the job.
        fence: what every write about it must carry.
    """

    job_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a worker tells when it asks for work.

    Args:
        models: catalogue names that it serves.
        resident: those in its memory.
        held_s: seconds since it last loaded a model.
        swap_s: measured seconds that loading a model takes.
        machine: id of the machine whose spool it looks into, "" for none.
        batches: model to pairs of (pixels of a job, how many of that size may share a call), the smallest size first.
    """

    models: Sequence[str]
    resident: Sequence[str] = ()
    held_s: float = 0.0
    swap_s: Mapping[str, float] = field(default_factory=dict)
    batches: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    machine: str = ""


class Leases:
    """Claims jobs and keeps track of them; safe to use from several threads.

    Args:
        client: from `polyreel.records.connect`.
        retention_s: how long the record of a job stays that had its attempts, seconds.
        lease_s: how long a claim holds without being renewed, seconds.
        rule: how a worker chooses between models.
    """

    def __init__(
        self, client: redis.Redis, *, retention_s: float, lease_s: float = 20.0, rule: Rule | None = None
    ) -> None:
        self.client = client
        self.lease_s = lease_s
        self._retention_s = int(retention_s)
        self._rule = asdict(rule or Rule()) | {"default_swap_s": DEFAULT_SWAP_S}
        self._claim = script(client, "claim")
        self._renew = script(client, "renew")
        self._reap = script(client, "reap")
        self._repair = script(client, "repair")
        self._beat = script(client, "beat")

    @property
    def renew_s(self) -> float:
        """Seconds between two renewals, and between two looks of a reaper."""
        return self.lease_s / 4

    def claim(self, worker: str, wishes: Wishes) -> list[Claim]:
        """Choose a model and take the head of its order, with as many followers as may share its call.

        Returns:
            The jobs, leased to `worker`, the head first; none when nothing is to be had.
        """
        terms = {
            "worker": worker,
            "machine": wishes.machine,
            "claim": uuid.uuid4().hex,
            "models": list(wishes.models),
            "resident": list(wishes.resident),
            "held_s": wishes.held_s,
            "swap_s": dict(wishes.swap_s),
            "batches": {model: [list(pair) for pair in sizes] for model, sizes in wishes.batches.items()},
            "rule": self._rule,
            "lease_s": self.lease_s,
            "schema": SCHEMA,
            "iso": iso_now(),
        }
        said = [str(part) for part in self._claim(args=arguments(terms))]
        return [Claim(job_id, int(fence)) for job_id, fence in zip(said[::2], said[1::2], strict=True)]

    def renew(self, worker: str, claims: Sequence[Claim]) -> list[str]:
        """Lengthen leases; one that ran out is taken again unless somebody else has claimed the job since.

        Returns:
            A word for each: "ok", "lost" (somebody else has it), or the end that the job has come to.
        """
        parts = [part for claim in claims for part in (claim.job_id, str(claim.fence))]
        terms = {"worker": worker, "lease_s": self.lease_s}
        return [str(word) for word in self._renew(args=arguments(terms, *parts))]

    def reap(self) -> dict[str, str]:
        """Take jobs from workers whose leases have run out.

        Returns:
            Job id to "queued", or "failed" for one that has had its attempts. Nothing for one lease's time after Redis
            was away: the leases that ran out meanwhile could not be renewed.
        """
        # Whoever reaps does so every quarter of a lease; a gap of more than two says that nobody could.
        return self._reaped({"gap_s": 2.2 * self.renew_s})

    def expire_worker(self, worker: str, *, counted: bool = True) -> dict[str, str]:
        """Take all jobs from a worker that is known to be dead; as `reap`.

        Args:
            counted: False when it was told to stop and could not: that is no attempt. What it writes yet is refused.
        """
        return self._reaped({"worker": worker, "counted": counted})

    def _reaped(self, how: dict[str, object]) -> dict[str, str]:
        terms = ending_terms(self._retention_s, WORKER_DIED) | {"lease_s": self.lease_s} | how
        said = [str(part) for part in self._reap(args=arguments(terms))]
        return dict(zip(said[::2], said[1::2], strict=True))

    def repair(self, every_s: int = 0) -> dict[str, str]:
        """Bring records and orders together again where a crash or an older version left one without the other.

        Args:
            every_s: do nothing if this was done less than so many seconds ago, by whomever.

        Returns:
            Job id to what was done about it.
        """
        terms = {"lease_s": self.lease_s, "schema": SCHEMA, "every_s": every_s}
        said = [str(part) for part in self._repair(args=arguments(terms))]
        return dict(zip(said[::2], said[1::2], strict=True))

    def beat(self, worker: str, about: Mapping[str, Any]) -> Orders:
        """Say that `worker` lives and what it is doing; return what it is told.

        Args:
            about: JSON; its "loaded" are the models in memory, and "loading" is the one that will be.
        """
        terms = {
            "worker": worker,
            "about": json.dumps(about),
            "models": models_of(about),
            "for_s": HEARTBEAT_TTL_S,
            "commands_s": EXPIRES_S,
        }
        return parse_orders(self._beat(args=arguments(terms)))

    def leave(self, worker: str) -> None:
        """Say that `worker` has stopped, so that nobody counts on it until its heartbeat has run out."""
        self.client.delete(f"{WORKER_PREFIX}{worker}")
        self.client.hdel(RESIDENTS, worker)

    def swap_seconds(self) -> dict[str, float]:
        """Return the measured seconds that loading each model takes."""
        return {str(model): float(value) for model, value in self.client.hgetall(SWAPS).items()}

    def learn_swap(self, model: str, seconds: float) -> None:
        """Move a model's mean loading time towards the newest measurement."""
        before = self.client.hget(SWAPS, model)
        self.client.hset(SWAPS, model, f"{towards(float(before) if before else None, seconds):.3f}")


def models_of(about: Mapping[str, Any]) -> list[str]:
    """Return the models that a worker has in memory or is loading, by its heartbeat. Any: JSON."""
    loaded, loading = about.get("loaded", ()), about.get("loading", "")
    return [*(model for model in loaded if model != loading), *([loading] if loading else [])]
