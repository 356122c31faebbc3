"""Job records in Redis: the truth about every job, and the only code that writes one.

    polyreel:job:{id}         hash, the fields of `VideoJob` and ours (below)
    polyreel:open             sorted set of unfinished job ids by creation time
    polyreel:open:owners      hash, owner to its number of unfinished jobs
    polyreel:open:accounts    hash, likewise by account; beside it what `lua/accounts.lua` keeps of them
    polyreel:key:{id}         hash, an API key, see `polyreel.key_store`
    polyreel:jobs:{owner}     sorted set of an owner's job ids by their number; whoever lists them takes out those whose
                              record has expired
    polyreel:ready:{model}    sorted set of waiting job ids in fair order; RQ's list rq:queue:{model} shows the same
    polyreel:fair:{model}     hash, the state of that order, see lua/common.lua
    polyreel:leases           sorted set of claimed job ids by deadline, see `polyreel.leases`
    polyreel:number:{n}       the job id behind a whole-number id (ModelsLab's clients want integers)
    polyreel:idempotency:{h}  hash, the job that an Idempotency-Key made
    polyreel:waiting:{id}     sorted set of the clients that wait for a job, by when they will be gone
    polyreel:worker:{name}    what a live worker says of itself, JSON; expires when it stops beating
    polyreel:commands:{name}  what it is told about its models, see `polyreel.commands`
    polyreel:pinned           hash, model to whether it stays loaded, likewise
    polyreel:preview:{id}     a picture of an unfinished job, see `polyreel.previews`
    polyreel:pictures         set of the keys of clients' pictures in the storage
    polyreel:picture:{key}    set of the job ids that use one; ids whose record is gone are taken out where they are met
    polyreel:residents        hash, worker to the models in its memory, JSON
    polyreel:seconds          hash, model name to the moving mean of its seconds per job
    polyreel:seconds:shapes   hash, `polyreel.durations.seconds_key` to the moving mean of its seconds, loading left out
    polyreel:rates            hash, model name to the moving mean of its `polyreel.admission.Rates`, JSON
    polyreel:counts           hash of counters, see `polyreel.metrics`
    polyreel:series           hash of counters by labels, likewise
    polyreel:counted:{once}   that something was counted which nobody may count twice, for minutes

Ours: `claimable` is 1 while no worker has the job, `fence` counts the claims (a write that carries an older fence
comes from a worker that was given up, and is refused), `execution` names the claim in RQ's registries, `ended_by` the
fence that ended it ("leave" when its last waiting client left), `number` is the integer id, `model` and `pixels` place
it in its queue, `finishing` is 1 while its file is in the making, `expected_ms`, `max_running`, `charged_to` and
`sharing` are what the limits of keys go by (`lua/accounts.lua`), `spooled_on` the machine on whose disk its files lie,
`spooled_until` until when others leave it to that one, `schema` is the version of the record. Each change is
one Lua script (`polyreel/lua`), so no two processes can both be right; and since a client sends a script again when its
reply was lost, taking in, claiming and ending twice is the same as once. All times are of Redis' clock. Records of
finished jobs expire with their files; open ones never do.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from polyreel.admission import Rates
from polyreel.durations import NEWEST, towards
from polyreel.errors import KeyReused, QueueUnavailable, TooManyJobs
from polyreel.job import MAX_ATTEMPTS, SCHEMA, JobStatus, VideoJob
from polyreel.limits import Usage, limit_reached
from polyreel.metrics import Metric
from polyreel.rq_entry import entry_fields, iso_now
from polyreel.scripts import arguments, exception_text, script
from polyreel.terms import IDEMPOTENCY_S, WEIGHTS, Terms

OPEN = "polyreel:open"
PICTURES = "polyreel:pictures"
SECONDS = "polyreel:seconds"
SHAPES = "polyreel:seconds:shapes"
RATES = "polyreel:rates"
RESIDENTS = "polyreel:residents"
WORKER_PREFIX = "polyreel:worker:"

#: For how long a call that counts may be repeated, seconds: longer than `patient_retry` goes on.
_COUNTED_S = 600

#: How many shapes' seconds are kept.
_MOST_SHAPES = 5000

#: A worker that has not beaten for this long is shown as gone, seconds.
HEARTBEAT_TTL_S = 15

#: How long a preview stays that no newer one replaces, seconds: a step of a large offloaded model takes minutes.
PREVIEW_TTL_S = 600

#: What a job is told that took its workers down with it.
WORKER_DIED = f"The worker died {MAX_ATTEMPTS} times while it ran this job; it is not tried again."

#: And one whose workers could not go on because of it and gave it back.
_GIVEN_BACK = f"Its worker could not go on {MAX_ATTEMPTS} times while it ran this job; it is not tried again."


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A record with the fields that only the queue's own machinery reads.

    Args:
        job: the record.
        number: its whole-number id.
        fence: claims so far.
        claimable: True while no worker has it.
    """

    job: VideoJob
    number: int
    fence: int
    claimable: bool


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn any trouble with Redis into `QueueUnavailable`."""
    try:
        yield
    except redis.OutOfMemoryError as err:
        raise QueueUnavailable("The queue's memory is full; nothing was accepted. Try again later.") from err
    except redis.RedisError as err:
        raise QueueUnavailable("The queue does not answer right now. Try again in a few seconds.") from err


def patient_retry() -> Retry:
    """Return the retry rule of a worker: about two minutes, so that no result is lost to a restart of Redis."""
    return Retry(ExponentialWithJitterBackoff(base=0.05, cap=2.0), 60)


def brief_retry() -> Retry:
    """Return the retry rule of a request: redis-py's own would hold it for 59 s when Redis hangs."""
    return Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 1)


#: Socket limits of the API process, seconds: a command that connects and waits for its answer in vain, twice, with a
#: pause between, takes about 3.9 s. Clients are answered sooner, by the budget of `server.gate`.
BRIEF_TIMEOUTS: dict[str, Any] = {"socket_connect_timeout": 0.7, "socket_timeout": 1.2}


#: And of a worker, seconds: a network that swallows packets must not hold a write for ever. Every write is repeatable.
PATIENT_TIMEOUTS: dict[str, Any] = {"socket_connect_timeout": 5.0, "socket_timeout": 10.0}


def connect(url: str, *, patient: bool) -> redis.Redis:
    """Return a client that speaks text.

    Args:
        url: of Redis or Valkey, e.g. "redis://host:6379/0" or "unix:///path/redis.sock".
        patient: True in a worker, False where somebody waits for an answer.
    """
    if patient:
        return redis.Redis.from_url(url, decode_responses=True, retry=patient_retry(), **PATIENT_TIMEOUTS)
    return redis.Redis.from_url(url, decode_responses=True, retry=brief_retry(), **BRIEF_TIMEOUTS)


def job_key(job_id: str) -> str:
    """Return the key of a record."""
    return f"polyreel:job:{job_id}"


def jobs_key(owner: str) -> str:
    """Return the key of an owner's index."""
    return f"polyreel:jobs:{owner}"


def parse(record: Mapping[Any, Any]) -> StoredJob | None:
    """Read a record hash; None when there is none. Any: redis-py types keys and values as bytes or text."""
    if "request" not in record:
        return None
    return StoredJob(
        VideoJob.from_record(record), int(record["number"]), int(record["fence"]), record["claimable"] == "1"
    )


def ending_terms(retention_s: int, error: str) -> dict[str, Any]:
    """Return what a script needs to end a job. Any: JSON."""
    return {
        "retention_s": retention_s,
        "max_attempts": MAX_ATTEMPTS,
        "error_code": "worker_died",
        "error_message": error,
        "rq": {"iso": iso_now(), "error": exception_text(error)},
    }


def queue_is_full(max_open: int) -> TooManyJobs:
    """Return the refusal of a job beyond `max_open` unfinished ones."""
    return TooManyJobs(f"The queue is full ({max_open} unfinished jobs). Try again later.", retry_after_s=30)


class Records:
    """Writes and reads job records; safe to use from several threads.

    Args:
        client: from `connect`.
        retention_s: how long a finished record stays, seconds.
        lease_s: how long a claim holds without being renewed, seconds.
    """

    def __init__(self, client: redis.Redis, retention_s: float, lease_s: float = 20.0) -> None:
        self.client = client
        self.retention_s = int(retention_s)
        self.lease_s = lease_s
        self._submit = script(client, "submit")
        self._advance = script(client, "advance")
        self._release = script(client, "release")
        self._cancel = script(client, "cancel")
        self._delete = script(client, "delete")
        self._pictures = script(client, "pictures")
        self._usage = script(client, "usage")
        self._count = script(client, "count")

    def create(
        self,
        job: VideoJob,
        max_open: int,
        *,
        max_open_of_owner: int | None = None,
        timeout_s: int = 3600,
        terms: Terms | None = None,
    ) -> StoredJob:
        """Write a new record and put it into its model's order: when this returns, the job is acknowledged.

        Args:
            max_open: unfinished jobs in all.
            max_open_of_owner: unfinished jobs of an account whose key names no number; None for no limit of its own.
            timeout_s: shown by RQ's tools.
            terms: the job's lane and Idempotency-Key, its key's limits, what it is expected to take.

        Returns:
            The record; an earlier job's when its Idempotency-Key and request came before.

        Raises:
            TooManyJobs: that many are unfinished already; nothing was written.
            LimitReached: the job's account has used up a limit of its key; nothing was written or counted.
            KeyReused: the Idempotency-Key stands for another request.
        """
        terms = terms or Terms()
        _, job_id, number, created_at = self._ask(job, max_open, max_open_of_owner, timeout_s, terms)
        if job_id == job.id:
            return StoredJob(replace(job, created_at=float(created_at)), int(number), 0, True)
        earlier = self.get(job_id)
        if earlier:
            return earlier
        return self.create(  # its record expired this moment, so the key stands for nothing any more
            job, max_open, max_open_of_owner=max_open_of_owner, timeout_s=timeout_s, terms=terms
        )

    def check(
        self, job: VideoJob, max_open: int, *, max_open_of_owner: int | None = None, terms: Terms | None = None
    ) -> None:
        """Raise what `create` would raise now; write nothing, and promise nothing."""
        self._ask(job, max_open, max_open_of_owner, 3600, terms or Terms(), only_asks=True)

    def _ask(
        self,
        job: VideoJob,
        max_open: int,
        max_open_of_owner: int | None,
        timeout_s: int,
        terms: Terms,
        *,
        only_asks: bool = False,
    ) -> list[str]:
        """Return what `submit.lua` says of a job that it does not refuse."""
        account = job.account or job.owner
        limits = ({} if max_open_of_owner is None else {"max_queued": max_open_of_owner}) | terms.limits.to_dict()
        pixels = job.request.num_frames * job.request.height * job.request.width
        fields = [part for pair in job.to_record().items() for part in pair]
        how = {
            "id": job.id,
            "owner": job.owner,
            "account": account,
            "limits": {name: value for name, value in limits.items() if name != "models"},
            "expected_ms": round(terms.expected_s * 1000),
            "model": job.request.model,
            "dialect": job.dialect,
            "flow": f"{job.lane}:{account}",
            "cost": 1 / WEIGHTS[job.lane],
            "pixels": pixels,
            "schema": SCHEMA,
            "fields": len(fields),
            "max_open": max_open,
            "idempotency_key": terms.redis_key(job.owner),
            "idempotency_s": IDEMPOTENCY_S,
            "digest": terms.digest,
            "ends": terms.ends,
            "ending": ending_terms(self.retention_s, job.error_message),
            "only_asks": only_asks,
            "pictures": [image.key for image in job.request.images],
        }
        said = self._submit(args=arguments(how, *fields, *entry_fields(job, timeout_s, self.client)))
        answer = [str(part) for part in said]
        if answer[0] == "full":
            raise queue_is_full(max_open)
        if answer[0] == "limit":
            limit = limits["gpu_seconds_per_day" if answer[1] == "unknown" else answer[1]]
            raise limit_reached(answer[1], limit, float(answer[2]), terms.expected_s)
        if answer[0] == "other":
            raise KeyReused("This Idempotency-Key was sent before with another request; use a new one.")
        return answer

    def get(self, job_id: str) -> StoredJob | None:
        """Return a record, or None."""
        return parse(self.client.hgetall(job_key(job_id)))

    def advance(self, job_id: str, fence: int | None, status: JobStatus, worker: str = "", **fields: object) -> bool:
        """Move a job forward and set fields; a lower status than the record's changes the fields alone.

        A worker that was taken for dead has the job again by this, as long as nobody else has claimed it.

        Args:
            fence: from `Leases.claim`; None for a change that needs no claim.
            worker: who writes.
            fields: `VideoJob` fields by name.

        Returns:
            False when the job ended already or another worker has it: the caller's result is to be dropped.
        """
        return self.advance_all([(job_id, fence)], status, worker, previews=None, **fields)[0]

    def advance_all(
        self,
        jobs: Sequence[tuple[str, int | None]],
        status: JobStatus,
        worker: str = "",
        *,
        previews: Mapping[str, str] | None = None,
        **fields: object,
    ) -> list[bool]:
        """Do the same with several jobs in one step; as `advance`, one answer for each.

        Args:
            previews: job id to a picture to show, from `polyreel.previews.preview_text`; of jobs that go on, since
                nobody would take it away again.
        """
        flat: list[str] = []
        for name, value in fields.items():
            flat += [name, value if isinstance(value, str) else json.dumps(value)]
        claims = [part for job_id, fence in jobs for part in (job_id, "" if fence is None else str(fence))]
        how = self._terms(str(fields.get("error_message", ""))) | {"status": status.value, "worker": worker}
        if previews:
            how |= {"previews": dict(previews), "previews_s": PREVIEW_TTL_S}
        return [bool(said) for said in self._advance(args=arguments(how, json.dumps(flat), *claims))]

    def release(self, job_id: str, fence: int, *, counted: bool) -> bool:
        """Give a claimed job back to the queue, before all that wait; fail it when it has had its attempts.

        Args:
            counted: False takes the attempt back (a drained worker's job).
        """
        how = self._terms(_GIVEN_BACK) | {"id": job_id, "fence": fence, "counted": counted}
        return bool(self._release(args=arguments(how)))

    def cancel(self, job_id: str) -> str:
        """End a job that has not begun to be stored.

        Returns:
            "cancelled" when this call did it; "was cancelled", "succeeded" or "failed" when it had ended; "finishing"
            when its file is being made already; "" when there is no such job.
        """
        return str(self._cancel(args=arguments(self._terms() | {"id": job_id})))

    def delete(self, job_id: str) -> bool:
        """As `forget`; False for an unfinished job, which stays."""
        return self.forget(job_id) is not None

    def forget(self, job_id: str) -> list[str] | None:
        """Forget a job that has ended, with all that leads to it.

        Its Idempotency-Key stands for nothing then, and its files are the caller's to remove (`polyreel.removal`). One
        that is not there is forgotten: a client asks again when the reply was lost.

        Returns:
            Keys in the storage of its pictures that no other job uses; None for an unfinished job, which stays.
        """
        word, *pictures = (str(part) for part in self._delete(args=arguments({"id": job_id})))
        return pictures if word == "deleted" else None

    def unused_pictures(self, most: int = 500) -> list[str]:
        """Forget pictures that no job uses any more, those of expired records too, and return their keys.

        Args:
            most: pictures that are looked at in one step of Redis.
        """
        unused: list[str] = []
        cursor = 0
        while True:
            cursor, names = self.client.sscan(PICTURES, cursor, count=most)
            if names:
                unused += (str(key) for key in self._pictures(args=arguments({"pictures": list(names)})))
            if not cursor:
                return unused

    def usage(self, account: str) -> Usage:
        """Return what an account has used today; all zeros for one that was never heard of.

        Args:
            account: `Caller.account`, or the owner where that is "".
        """
        day, submits, ms, reserved_ms, unfinished, running, left_s = self._usage(args=arguments({"account": account}))
        return Usage(
            day=(date(1970, 1, 1) + timedelta(days=int(day))).isoformat(),
            submits=int(submits),
            gpu_seconds=int(ms) / 1000,
            reserved_seconds=int(reserved_ms) / 1000,
            queued=max(0, int(unfinished) - int(running)),
            running=int(running),
            resets_in_s=math.ceil(float(left_s)),
        )

    def count(self, metric: Metric, *labels: str) -> None:
        """Raise a counter by one, also when the reply is lost and the call is repeated.

        Args:
            labels: in the order of `metric.labels`.
        """
        terms = {"series": [metric.series, *labels], "once": uuid.uuid4().hex, "for_s": _COUNTED_S}
        self._count(args=arguments(terms))

    def _terms(self, error: str = "") -> dict[str, Any]:
        return ending_terms(self.retention_s, error) | {"lease_s": self.lease_s}

    def open_ids(self) -> list[str]:
        """Return the ids of all unfinished jobs, oldest first."""
        return [str(job_id) for job_id in self.client.zrange(OPEN, 0, -1)]

    def learn_seconds(
        self, model: str, seconds: float, rates: Rates | None = None, *, shape: str = "", own_s: float = 0.0
    ) -> None:
        """Move a model's mean seconds per job, its rates and its shape's seconds towards the newest measurement.

        Two workers that learn at once may lose one measurement of the two, which the next one makes good.

        Args:
            shape: from `polyreel.durations.seconds_key`, "" for none.
            own_s: seconds of this job without loading its model.
        """
        before = self.client.hget(SECONDS, model)
        self.client.hset(SECONDS, model, f"{towards(float(before) if before else None, seconds):.3f}")
        if rates:
            known = parse_rates(self.client.hget(RATES, model))
            self.client.hset(RATES, model, json.dumps(asdict(known.towards(rates, NEWEST) if known else rates)))
        if shape:
            if self.client.hlen(SHAPES) >= _MOST_SHAPES:  # clients choose the sizes; what matters is soon known again
                self.client.delete(SHAPES)
            before = self.client.hget(SHAPES, shape)
            self.client.hset(SHAPES, shape, f"{towards(float(before) if before else None, own_s):.3f}")


def parse_rates(text: object) -> Rates | None:
    """Read what `learn_seconds` wrote of a model; None before its first job, and for what cannot be read."""
    try:
        return Rates(**json.loads(str(text))) if text else None
    except (TypeError, ValueError):
        return None


def hidden_from(stored: StoredJob | None, owner: str) -> bool:
    """Return whether `owner` must not learn of this record: it is not there, or somebody else's."""
    return stored is None or stored.job.owner != owner
