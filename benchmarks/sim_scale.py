"""How far one Redis and the API carry: what breaks first with 10, 100, 1,000 and 10,000 GPUs.

1. measures what each call costs a real Valkey and the API (`benchmarks.scale_costs`), PING being the control;
2. works out what a pool of so many GPUs asks of them (`benchmarks.scale_model`), for two kinds of jobs;
3. holds that to a run of the real calls: simulated workers, which do all that a worker does but make videos, share one
   Valkey, and its CPU and the time from submit to claim are compared with the arithmetic.

    python -m benchmarks.sim_scale              under two minutes; docs/scale.md has its tables
    python -m benchmarks.sim_scale --quick      a few seconds, for the tests
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import redis

from benchmarks.scale_costs import Measured, Meter, SimWorker, a_job, measure, open_bench
from benchmarks.scale_model import BEATS, LIMITS, LOOKS, REPORTS, Load, Mix, breaks_at, load
from polyreel.broker import start_embedded
from polyreel.queue import Queue, rq_connection

GPUS = (10, 100, 1000, 10_000)
MIXES = (Mix("60 s, 30 steps", 60.0, 30), Mix("4 s, 8 steps", 4.0, 8))

#: Of the run that the arithmetic is held to: nobody polls, jobs are short so that there are many, and there is always
#: an idle worker, so that a job waits for Redis alone.
RUN = Mix("the run", 4.0, 8, busy=0.6, poll_every_s=0.0)

#: Simulated workers that share one pool of connections: redis-py opens a hundred of a pool at most.
_SHARED = 25


@dataclass(frozen=True)
class Run:
    """What was measured of simulated workers.

    Args:
        workers: how many.
        jobs: ended in a second.
        redis: share of one processor that Valkey's main thread used.
        claim_s: mean seconds from submit to claim, by Valkey's clock.
    """

    workers: int
    jobs: float
    redis: float
    claim_s: float


def main() -> None:
    """Measure, work out, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls, few simulated workers")
    options = parser.parse_args()
    times, many, sizes, seconds = (60, 40, (8,), 3.0) if options.quick else (250, 250, (50, 150), 12.0)
    with a_valkey() as (url, folder):
        measured = measure(url, folder, times, 10, many)
        runs = [run(url, size, RUN, seconds) for size in sizes]
    print("\n".join([*costs_table(measured), "", *pool_tables(measured), "", *runs_table(runs, measured)]))


@contextmanager
def a_valkey() -> Iterator[tuple[str, Path]]:
    """Give the URL of a Valkey of one's own, and a folder."""
    with tempfile.TemporaryDirectory(prefix="polyreel-scale-") as folder:
        broker = start_embedded(Path(folder) / "state")
        try:
            yield broker.url, Path(folder)
        finally:
            broker.stop()


def run(url: str, size: int, mix: Mix, seconds: float) -> Run:
    """Let simulated workers work for so long on jobs that come at random; return what was measured."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.flushall()
        queues = [open_bench(url) for _ in range(0, size, _SHARED)]
        rqs = [rq_connection(url, patient=True) for _ in queues]
        workers = [SimWorker(url, f"sim-{n}", queues[n // _SHARED], rqs[n // _SHARED]) for n in range(size)]
        stop, ended = threading.Event(), list[str]()
        threads = [threading.Thread(target=_work, args=(worker, mix, stop, ended)) for worker in workers]
        threads += [threading.Thread(target=_submit, args=(queues[0], mix.busy * size / mix.seconds, stop))]
        threads += [threading.Thread(target=_keep, args=(workers, stop))]
        for thread in threads:
            thread.start()
        time.sleep(min(seconds, 1.5 * mix.seconds))  # until as many work as will
        meter, before, began = Meter(client), len(ended), time.monotonic()
        first = meter.look()
        time.sleep(seconds)
        last, lasted, after = meter.look(), time.monotonic() - began, len(ended)
        stop.set()
        for thread in threads:
            thread.join()
        waits = [_waited_s(client, job) for job in ended[before:after]]
        for worker in workers:
            worker.keeper.records.client.close()
        for queue, rq in zip(queues, rqs, strict=True):
            queue.records.client.close()
            rq.close()
    return Run(
        size,
        (after - before) / lasted,
        (last["cpu"] - first["cpu"]) / lasted,
        statistics.mean(waits) if waits else math.nan,
    )


def _work(worker: SimWorker, mix: Mix, stop: threading.Event, ended: list[str]) -> None:
    """Do what a worker does with its jobs, one after the other."""
    while not stop.is_set():
        claims = worker.claim()
        if not claims:
            stop.wait(1 / LOOKS)
            continue
        [claim] = claims
        worker.read(claim)
        worker.show(claim)
        worker.tell(claim)
        reports = mix.steps + REPORTS - 3
        for n in range(reports):
            worker.report(claim, n)
            if n < BEATS:
                worker.beat()
            if stop.wait(mix.seconds / reports):
                return
        worker.end(claim)
        worker.learn()
        worker.tell()
        ended.append(claim.job_id)


def _submit(queue: Queue, rate: float, stop: threading.Event) -> None:
    """Submit jobs at random, so many a second."""
    chance, due = random.Random(7), time.monotonic()
    while not stop.is_set():
        due += chance.expovariate(rate)
        if stop.wait(max(0.0, due - time.monotonic())):
            return
        queue.submit(a_job())


def _keep(workers: Sequence[SimWorker], stop: threading.Event) -> None:
    """Do what the workers' keepers do: beat every second, renew and reap every five."""
    due = time.monotonic()
    turn = 0
    while not stop.is_set():
        for worker in workers:
            worker.beat()
            if (turn + hash(worker.name)) % 5 == 0:
                worker.renew()
                worker.reap()
        turn, due = turn + 1, due + 1
        if stop.wait(max(0.0, due - time.monotonic())):
            return


def _waited_s(client: redis.Redis, job: str) -> float:
    started_at, created_at = client.hmget(f"polyreel:job:{job}", "started_at", "created_at")
    return float(started_at or 0) - float(created_at or 0)


def costs_table(measured: Measured) -> list[str]:
    """Return what each call costs."""
    lines = [
        f"A PING (control) takes {measured.ping_us:.0f} µs of Valkey's thread; a flush to disk {measured.flush.us:.0f} "
        f"µs of it, and {measured.flush.wall_s * 1e3:.2f} ms.",
        "",
        "| call | µs of Redis | × PING | + µs per worker | round trips | bytes | µs of the API |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, cost in measured.costs.items():
        each = f"{cost.redis_us_each:.2f}" if cost.redis_us_each else "-"
        api = f"{cost.api_us:.0f}" if cost.api_us else "-"
        times = cost.redis_us / max(0.1, measured.ping_us)
        size = f"{cost.bytes:.0f}"
        lines.append(f"| {name} | {cost.redis_us:.0f} | {times:.0f} | {each} | {cost.trips:g} | {size} | {api} |")
    memory = measured.memory
    return [
        *lines,
        "",
        f"Memory of Redis: {memory.open_job / 1e3:.1f} kB for an unfinished job, {memory.ended_job / 1e3:.1f} kB for "
        f"an ended one, {memory.worker / 1e3:.0f} kB for a worker and a connection of it.",
    ]


def pool_tables(measured: Measured) -> list[str]:
    """Return what pools ask, and where each limit is reached."""
    lines = []
    for mix in MIXES:
        lines += [
            f"Jobs of {mix.name}; {mix.busy:.0%} of the GPUs busy; each client polls every {mix.poll_every_s:g} s, "
            f"{mix.followed:.0%} follow events; ended jobs kept for {mix.retention_s / 86400:g} days.",
            "",
            "| GPUs | jobs/s | Redis' thread | of it: " + ", ".join(_parts(measured, mix)) + " | submit to claim | "
            "memory | network | connections | API processes |",
            "|---:|---:|---:|---|---:|---:|---:|---:|---:|",
        ]
        lines += [_row(load(gpus, mix, measured.costs, measured.memory, measured.flush)) for gpus in GPUS]
        lines += ["", "| breaks | at GPUs |", "|---|---:|"]
        found = {limit: breaks_at(limit, mix, measured.costs, measured.memory, measured.flush) for limit in LIMITS}
        lines += [f"| {limit} | {_rounded(gpus)} |" for limit, gpus in sorted(found.items(), key=lambda one: one[1])]
        lines.append("")
    kept = replace(MIXES[1], retention_s=86400.0)
    at = breaks_at("64 GB of memory of Redis", kept, measured.costs, measured.memory, measured.flush)
    return [*lines, f"With `retention_s` of a day, {kept.name} fill 64 GB at {_rounded(at)} GPUs."]


def _parts(measured: Measured, mix: Mix) -> list[str]:
    return list(load(10, mix, measured.costs, measured.memory, measured.flush).redis_parts)


def _row(one: Load) -> str:
    parts = ", ".join(f"{share:.1%}" for share in one.redis_parts.values())
    claim = f"{one.claim_s * 1e3:.0f} ms" if math.isfinite(one.claim_s) else "never ends"
    return (
        f"| {one.gpus:,.0f} | {one.jobs:.2f} | {one.redis:.1%} | {parts} | {claim} | {one.redis_bytes / 1e9:.1f} GB | "
        f"{one.network / 1e6:.1f} MB/s | {one.connections:,.0f} | {one.api_processes} |"
    )


def _rounded(gpus: float) -> str:
    if gpus >= 999_999:
        return "not below 1,000,000"
    return f"{float(f'{gpus:.2g}'):,.0f}"


def runs_table(runs: Sequence[Run], measured: Measured) -> list[str]:
    """Return how far the arithmetic is from what was measured."""
    lines = [
        f"Held to a run: jobs of {RUN.seconds:g} s with {RUN.steps} steps, nobody polls.",
        "",
        "| simulated workers | jobs/s | Redis' thread | worked out | error | submit to claim | worked out |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in runs:
        # By the jobs that were: a machine that is busy with other things simulates fewer than were asked for.
        really = replace(RUN, busy=min(1.0, one.jobs * RUN.seconds / one.workers))
        asked = load(one.workers, really, measured.costs, measured.memory, measured.flush)
        lines.append(
            f"| {one.workers} | {one.jobs:.1f} | {one.redis:.1%} | {asked.redis:.1%} | "
            f"{asked.redis / one.redis - 1:+.0%} | {one.claim_s * 1e3:.0f} ms | {asked.claim_s * 1e3:.0f} ms |"
        )
    return lines


if __name__ == "__main__":
    main()
