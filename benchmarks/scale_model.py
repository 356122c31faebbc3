"""What a pool of so many GPUs asks of one Redis and of the API, from measured costs: arithmetic, no process, no Redis.

The costs are given to it (`benchmarks.scale_costs` measures them); what it knows of the traffic is what the code does:
a worker reports every step and ten stages of a job, beats every second and four times more in a job, renews and reaps
every 5 s, looks for work ten times a second while it has none. Counted with MONITOR on a running server;
`tests/workers/test_sim_scale.py` holds it to a real `JobRunner`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

#: Reports of a job beside its steps, and heartbeats beside one a second.
REPORTS, BEATS = 10, 4

#: A worker that has nothing to do asks so often, per second; a keeper renews and reaps so often.
LOOKS, KEEPS = 10.0, 0.2

#: Connections to Redis: a worker with its keeper, an API process (its pools grow with what is asked at once).
WORKER_CONNECTIONS, API_CONNECTIONS = 6, 40

#: How busy one thread may be on average: beyond it, waiting times grow as 1/(1 - busy).
BUSY = 0.7

#: Seconds between two repairs, and how long a process believes what it has read of the queue, at least and in times of
#: what reading it took.
REPAIR_S, FRESH_S, FRESH_FACTOR = 24.0, 1.0, 20.0

#: Looks per second at a job that is followed, and at all that one process follows.
FOLLOW_LOOKS, PROCESS_LOOKS = 4.0, 100.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call costs.

    Args:
        redis_us: of Redis' one thread, microseconds of CPU, flushes to disk left out.
        redis_us_each: further ones for each worker that lives (or open job, where the model says so).
        api_us: of an API process.
        bytes: over the network, both ways.
        trips: round trips.
        disk_bytes: appended to Redis' file.
        flushes: how often that is flushed to disk, if nobody else writes at the moment.
    """

    redis_us: float = 0.0
    redis_us_each: float = 0.0
    api_us: float = 0.0
    bytes: float = 0.0
    trips: float = 1.0
    disk_bytes: float = 0.0
    flushes: float = 0.0

    def at(self, count: float) -> float:
        """Return the microseconds of Redis with so many workers or jobs."""
        return self.redis_us + self.redis_us_each * count


@dataclass(frozen=True, slots=True)
class Flush:
    """What a flush of Redis' file to disk takes (`appendfsync always`): those who write meanwhile share the next one.

    Args:
        us: of Redis' one thread, microseconds of CPU.
        wall_s: seconds that it stands still.
    """

    us: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of Redis for an unfinished job, an ended one and a worker."""

    open_job: float
    ended_job: float
    worker: float


@dataclass(frozen=True, slots=True)
class Mix:
    """What is asked of the pool.

    Args:
        name: for the table.
        seconds: of a GPU for a job.
        steps: denoising steps of it.
        busy: share of the GPUs that work; the others look for work.
        waiting: jobs that wait, for each GPU.
        poll_every_s: seconds between two polls of a client; 0 for none.
        followed: share of the clients that follow events instead.
        retention_s: how long an ended job is kept.
    """

    name: str
    seconds: float
    steps: int
    busy: float = 0.9
    waiting: float = 0.0
    poll_every_s: float = 3.0
    followed: float = 0.15
    retention_s: float = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a pool asks.

    Args:
        gpus: of the pool.
        jobs: ended in a second.
        redis: share of one thread that Redis' commands take; over 1 it cannot keep up.
        redis_parts: the same by what asks.
        api_processes: needed for no more than `BUSY` of each.
        claim_s: mean seconds from a submit to its claim while GPUs are idle, `inf` where Redis does not keep up.
        redis_bytes: memory of Redis.
        network: bytes a second between Redis and the others.
        disk: bytes a second into Redis' file.
        connections: to Redis.
        unfinished: jobs.
    """

    gpus: float
    jobs: float
    redis: float
    redis_parts: Mapping[str, float]
    api_processes: int
    claim_s: float
    redis_bytes: float
    network: float
    disk: float
    connections: float
    unfinished: float


def rates(gpus: float, mix: Mix, costs: Mapping[str, Cost]) -> tuple[dict[str, tuple[str, float, float]], int]:
    """Return what is asked of Redis in a second, and the API processes that this takes.

    Returns:
        Part of the table and calls per second, and the number that `redis_us_each` counts, by name of the cost.
    """
    jobs = mix.busy * gpus / mix.seconds
    unfinished = (mix.busy + mix.waiting) * gpus
    polls = unfinished * (1 - mix.followed) / mix.poll_every_s if mix.poll_every_s else 0.0
    followed = unfinished * mix.followed if mix.poll_every_s else 0.0
    looks, processes = FOLLOW_LOOKS * followed, 1
    for _ in range(20):  # more processes look more often, which takes more of them
        looks = min(FOLLOW_LOOKS * followed, PROCESS_LOOKS * processes)
        cpu_us = jobs * costs["submit"].api_us + polls * costs["poll"].api_us + looks * costs["look"].api_us
        needed = max(1, math.ceil(cpu_us / 1e6 / BUSY))
        if needed <= processes:
            break
        processes = needed
    reading_s = costs["view"].api_us / 1e6 * gpus
    views = processes / max(FRESH_S, FRESH_FACTOR * reading_s) if mix.poll_every_s else 0.0
    return {
        "submit": ("submits", jobs, gpus),
        "claim": ("claims", jobs, gpus),
        "read": ("a job's reports", jobs, gpus),
        "report": ("a job's reports", jobs * (mix.steps + REPORTS - 3), gpus),
        "end": ("a job's reports", jobs, gpus),
        "learn": ("a job's reports", jobs, gpus),
        "rq": ("a job's reports", jobs, gpus),
        "idle claim": ("idle workers", (1 - mix.busy) * gpus * LOOKS, gpus),
        "beat": ("heartbeats, leases", gpus + BEATS * jobs, gpus),
        "renew": ("heartbeats, leases", mix.busy * gpus * KEEPS, gpus),
        "reap": ("heartbeats, leases", gpus * KEEPS, gpus),
        "repair": ("heartbeats, leases", 1 / REPAIR_S, unfinished),
        "poll": ("polls, events", polls, gpus),
        "look": ("polls, events", looks, gpus),
        "view": ("polls, events", views, gpus),
    }, processes


def load(gpus: float, mix: Mix, costs: Mapping[str, Cost], memory: Memory, flush: Flush) -> Load:
    """Return what a pool of so many GPUs asks."""
    asked, processes = rates(gpus, mix, costs)
    parts: dict[str, float] = {}
    writes = second = 0.0
    for name, (part, rate, count) in asked.items():
        us = costs[name].at(count)
        parts[part] = parts.get(part, 0.0) + rate * us / 1e6
        writes += rate * costs[name].flushes
        second += rate * (us / 1e6) ** 2
    flushes = writes / (1 + writes * flush.wall_s)  # the next one begins when there is a write, and takes all that came
    parts["flushes to disk"] = flushes * flush.us / 1e6
    second += flushes * flush.wall_s**2
    busy = sum(parts.values())
    idle = max(1.0, (1 - mix.busy) * gpus)
    # Pollaczek and Khinchine: the mean wait before one server with Poisson arrivals and these services.
    queued_s = second / (2 * (1 - busy)) if busy < 1 else math.inf
    jobs, unfinished = mix.busy * gpus / mix.seconds, (mix.busy + mix.waiting) * gpus
    return Load(
        gpus=gpus,
        jobs=jobs if gpus else 0.0,
        redis=busy,
        redis_parts=parts,
        api_processes=processes if gpus else 0,
        claim_s=1 / LOOKS / (idle + 1) + 2 * (queued_s + flush.wall_s) + costs["claim"].at(gpus) / 1e6,
        redis_bytes=memory.open_job * unfinished + memory.ended_job * jobs * mix.retention_s + memory.worker * gpus,
        network=sum(rate * costs[name].bytes for name, (_, rate, _) in asked.items()),
        disk=sum(rate * costs[name].disk_bytes for name, (_, rate, _) in asked.items()),
        connections=WORKER_CONNECTIONS * gpus + API_CONNECTIONS * processes,
        unfinished=unfinished,
    )


#: What breaks, in the units of `Load`, and what it is.
LIMITS: dict[str, tuple[Callable[[Load], float], float]] = {
    "max_queued at its default (1,000 unfinished jobs)": (lambda load: load.unfinished, 1000.0),
    "maxclients of Redis at its default (10,000 connections)": (lambda load: load.connections, 10_000.0),
    "one thread of Redis (70 % busy)": (lambda load: load.redis, BUSY),
    "64 GB of memory of Redis": (lambda load: load.redis_bytes, 64e9),
    "a network of 10 Gb/s": (lambda load: load.network, 1.25e9),
}


def breaks_at(
    limit: str, mix: Mix, costs: Mapping[str, Cost], memory: Memory, flush: Flush, most: float = 1e6
) -> float:
    """Return with how many GPUs a limit is reached, `most` where it is not before."""
    measure, bound = LIMITS[limit]
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(load(middle, mix, costs, memory, flush)) > bound else (middle, high)
    return high


def without(costs: Mapping[str, Cost], *names: str) -> dict[str, Cost]:
    """Return the costs as they were if those of some calls did not grow with the number of workers."""
    return {name: replace(cost, redis_us_each=0.0) if name in names else cost for name, cost in costs.items()}
