"""Job records in Redis: the truth about every job, and the only code that writes one.

    polyreel:job:{id}       hash, the fields of `VideoJob` and four of ours (below)
    polyreel:open           sorted set of unfinished job ids by creation time
    polyreel:number:{n}     the job id behind a whole-number id (ModelsLab's clients want integers)
    polyreel:worker:{name}  what a live worker says of itself, JSON; expires when it stops beating
    polyreel:seconds        hash, model name to the moving mean of its seconds per job
    polyreel:rates          hash, model name to the moving mean of its `polyreel.admission.Rates`, JSON
    polyreel:counts         hash of counters, see `polyreel.metrics`

Ours: `claimable` is 1 while no worker has the job, `fence` counts the claims (a write that carries an older fence
comes from a worker that was given up, and is refused), `claim` names the call that claimed, `ended_by` the fence that
ended it, `number` is the integer id. Each change is one Lua script, so no two processes can both be right; and since
a client sends a script again when its reply was lost, creating, claiming and ending twice is the same as once.
Records of finished jobs expire with their files; open ones never do.

Seam: leases with deadlines, batching and fair order belong to the claim (`Records.claim`) and have an issue of
their own. Here a dead worker is known by its missing heartbeat.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from polyreel.admission import Rates
from polyreel.errors import QueueUnavailable, TooManyJobs
from polyreel.job import MAX_ATTEMPTS, JobStatus, VideoJob

OPEN = "polyreel:open"
SECONDS = "polyreel:seconds"
RATES = "polyreel:rates"
WORKER_PREFIX = "polyreel:worker:"

#: How far a mean moves towards the newest measurement, 0..1.
_NEWEST = 0.3

#: A worker that has not beaten for this long is dead, seconds.
HEARTBEAT_TTL_S = 15

_RANK = "local rank = {" + ", ".join(f"{s.value}={s.rank}" for s in JobStatus) + "}\n"

_CREATE = """
local have = redis.call('HGET', KEYS[1], 'number')
if have then return have end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[2]) then return 0 end
local t = redis.call('TIME')
local last = tonumber(redis.call('GET', 'polyreel:number') or '0')
-- not a bare INCR: a counter that a crash rolls back would hand a number out twice
local number = math.max(last + 1, t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('SET', 'polyreel:number', string.format('%.0f', number))
redis.call('SET', 'polyreel:number:' .. string.format('%.0f', number), ARGV[1])
redis.call('HSET', KEYS[1], 'number', string.format('%.0f', number), 'claimable', 1, 'fence', 0, unpack(ARGV, 4))
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('HINCRBY', 'polyreel:counts', 'submitted', 1)
return string.format('%.0f', number)
"""

_CLAIM = (
    _RANK
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'claimable', 'claim', 'fence')
if not r[1] or rank[r[1]] == 5 then return 0 end
if r[2] ~= '1' then return r[3] == ARGV[3] and tonumber(r[4]) or 0 end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HSET', KEYS[1], 'claimable', 0, 'worker', ARGV[1], 'started_at', ARGV[2], 'claim', ARGV[3])
if rank[r[1]] < rank['loading'] then redis.call('HSET', KEYS[1], 'status', 'loading') end
return redis.call('HINCRBY', KEYS[1], 'fence', 1)
"""
)

_ADVANCE = (
    _RANK
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'claimable', 'fence', 'progress', 'number', 'ended_by')
if not r[1] then return 0 end
-- the same end by the same claim again is a write whose reply was lost, and not a second opinion
if rank[r[1]] == 5 then return (ARGV[2] ~= '' and ARGV[2] == r[6] and ARGV[3] == r[1]) and 1 or 0 end
if ARGV[2] ~= '' and (r[2] == '1' or r[3] ~= ARGV[2]) then return 0 end
for i = 5, #ARGV, 2 do
  if ARGV[i] ~= 'progress' or tonumber(ARGV[i + 1]) > tonumber(r[4]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
if rank[ARGV[3]] > rank[r[1]] then redis.call('HSET', KEYS[1], 'status', ARGV[3]) end
if rank[ARGV[3]] == 5 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HINCRBY', 'polyreel:counts', ARGV[3], 1)
  redis.call('HSET', KEYS[1], 'claimable', 0, 'ended_by', ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('EXPIRE', 'polyreel:number:' .. r[5], ARGV[4])
end
return 1
"""
)

_RELEASE = (
    _RANK
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'claimable', 'fence')
if not r[1] or rank[r[1]] == 5 or r[2] == '1' or r[3] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'claimable', 1, 'worker', '')
if ARGV[2] == '1' then redis.call('HINCRBY', KEYS[1], 'attempts', -1)
else redis.call('HINCRBY', 'polyreel:counts', 'requeued', 1) end
return 1
"""
)


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


#: Socket limits of the API process, seconds: with one retry an answer takes 3 s at most.
BRIEF_TIMEOUTS: dict[str, Any] = {"socket_connect_timeout": 0.7, "socket_timeout": 1.2}


def connect(url: str, *, patient: bool) -> redis.Redis:
    """Return a client that speaks text.

    Args:
        url: of Redis or Valkey, e.g. "redis://host:6379/0" or "unix:///path/redis.sock".
        patient: True in a worker, False where somebody waits for an answer.
    """
    if patient:
        return redis.Redis.from_url(url, decode_responses=True, retry=patient_retry())
    return redis.Redis.from_url(url, decode_responses=True, retry=brief_retry(), **BRIEF_TIMEOUTS)


def job_key(job_id: str) -> str:
    """Return the key of a record."""
    return f"polyreel:job:{job_id}"


def parse(record: Mapping[Any, Any]) -> StoredJob | None:
    """Read a record hash; None when there is none. Any: redis-py types keys and values as bytes or text."""
    if "request" not in record:
        return None
    return StoredJob(
        VideoJob.from_record(record), int(record["number"]), int(record["fence"]), record["claimable"] == "1"
    )


def queue_is_full(max_open: int) -> TooManyJobs:
    """Return the refusal of a job beyond `max_open` unfinished ones."""
    return TooManyJobs(f"The queue is full ({max_open} unfinished jobs). Try again later.", retry_after_s=30)


class Records:
    """Writes and reads job records; safe to use from several threads.

    Args:
        client: from `connect`.
        retention_s: how long a finished record stays, seconds.
    """

    def __init__(self, client: redis.Redis, retention_s: float) -> None:
        self.client = client
        self.retention_s = int(retention_s)
        self._create = client.register_script(_CREATE)
        self._claim = client.register_script(_CLAIM)
        self._advance = client.register_script(_ADVANCE)
        self._release = client.register_script(_RELEASE)

    def create(self, job: VideoJob, max_open: int) -> StoredJob:
        """Write a new record.

        Raises:
            TooManyJobs: `max_open` jobs are unfinished already; nothing was written.
        """
        fields = [part for pair in job.to_record().items() for part in pair]
        number = self._create(keys=[job_key(job.id), OPEN], args=[job.id, max_open, job.created_at, *fields])
        if number == 0:
            raise queue_is_full(max_open)
        return StoredJob(job, int(number), 0, True)

    def get(self, job_id: str) -> StoredJob | None:
        """Return a record, or None."""
        return parse(self.client.hgetall(job_key(job_id)))

    def claim(self, job_id: str, worker: str, now: float) -> int:
        """Give an unclaimed, open job to `worker`; return the fence to write with, or 0 when it is not to be had."""
        return int(self._claim(keys=[job_key(job_id)], args=[worker, now, uuid.uuid4().hex]))

    def advance(self, job_id: str, fence: int | None, status: JobStatus, **fields: object) -> bool:
        """Move a job forward and set fields; a lower status than the record's changes the fields alone.

        Args:
            fence: from `claim`; None for a change that needs no claim (cancel, giving up).
            fields: `VideoJob` fields by name.

        Returns:
            False when the job ended already or another worker has it: the caller's result is to be dropped.
        """
        args: list[Any] = [job_id, "" if fence is None else fence, status.value, self.retention_s]
        for name, value in fields.items():
            args += [name, value if isinstance(value, str) else json.dumps(value)]
        return bool(self._advance(keys=[job_key(job_id), OPEN], args=args))

    def release(self, job_id: str, fence: int, *, counted: bool) -> bool:
        """Make a claimed job claimable again; `counted` False takes the attempt back (a drained worker's job)."""
        return bool(self._release(keys=[job_key(job_id)], args=[fence, "0" if counted else "1"]))

    def give_up(self, stored: StoredJob) -> None:
        """Fail a job that has had its attempts; one that moved on since it was read is left alone."""
        self.advance(
            stored.job.id,
            stored.fence,
            JobStatus.FAILED,
            error_code="worker_died",
            error_message=f"The worker died {MAX_ATTEMPTS} times while it ran this job; it is not tried again.",
            ended_at=time.time(),
        )

    def open_ids(self) -> list[str]:
        """Return the ids of all unfinished jobs, oldest first."""
        return [str(job_id) for job_id in self.client.zrange(OPEN, 0, -1)]

    def forget_open(self, job_id: str) -> None:
        """Drop an id whose record is gone from the set of unfinished jobs."""
        self.client.zrem(OPEN, job_id)

    def beat(self, worker: str, about: dict[str, object]) -> None:
        """Say that `worker` lives, for the next `HEARTBEAT_TTL_S` seconds."""
        self.client.set(f"{WORKER_PREFIX}{worker}", json.dumps(about), ex=HEARTBEAT_TTL_S)

    def leave(self, worker: str) -> None:
        """Say that `worker` has stopped."""
        self.client.delete(f"{WORKER_PREFIX}{worker}")

    def is_alive(self, worker: str) -> bool:
        """Return whether `worker` has beaten lately."""
        return bool(self.client.exists(f"{WORKER_PREFIX}{worker}"))

    def has_job(self, worker: str, job_id: str) -> bool:
        """Return whether `worker` lives and, if its heartbeat names the job it runs, runs `job_id`."""
        said = self.client.get(f"{WORKER_PREFIX}{worker}")
        return said is not None and json.loads(str(said)).get("job", job_id) == job_id

    def learn_seconds(self, model: str, seconds: float, rates: Rates | None = None) -> None:
        """Move a model's mean seconds per job, and its rates, towards the newest measurement.

        Two workers that learn at once may lose one measurement of the two, which the next one makes good.
        """
        before = self.client.hget(SECONDS, model)
        mean = seconds if before is None else (1 - _NEWEST) * float(before) + _NEWEST * seconds
        self.client.hset(SECONDS, model, f"{mean:.3f}")
        if rates:
            known = parse_rates(self.client.hget(RATES, model))
            self.client.hset(RATES, model, json.dumps(asdict(known.towards(rates, _NEWEST) if known else rates)))


def parse_rates(text: object) -> Rates | None:
    """Read what `learn_seconds` wrote of a model; None before its first job, and for what cannot be read."""
    try:
        return Rates(**json.loads(str(text))) if text else None
    except (TypeError, ValueError):
        return None


def estimate_s(job: VideoJob, mean_s: float | None, ahead: int, own_s: float | None = None) -> int:
    """Return the whole seconds until a job ends, 0 when it has ended.

    Args:
        mean_s: measured seconds per job of its model; None before the first one, then 10 is assumed.
        ahead: unfinished jobs before it, each of which takes the mean.
        own_s: what this job takes by its own work and the model's measured rates; None takes the mean too.
    """
    if job.status.is_terminal:
        return 0
    mean = mean_s or 10.0
    return max(1, round((own_s or mean) * (1 - job.progress / 100) + mean * ahead))


def hidden_from(stored: StoredJob | None, owner: str) -> bool:
    """Return whether `owner` must not learn of this record: it is not there, or somebody else's."""
    return stored is None or stored.job.owner != owner
