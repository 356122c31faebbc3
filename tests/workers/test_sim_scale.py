"""The simulation behind docs/scale.md: that it sends what a worker sends, and obeys the laws of any load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from benchmarks.scale_costs import Measured, Meter, SimWorker, a_job, open_bench
from benchmarks.scale_model import LIMITS, REPORTS, Cost, Flush, Memory, Mix, breaks_at, load, rates
from benchmarks.sim_scale import RUN, Run, costs_table, pool_tables, run, runs_table
from polyreel.queue import Queue, rq_connection
from tests.core.jobs import queued
from tests.families.quick import Quick
from tests.workers.claims import take
from workers.runner import JobRunner

NAMES = (
    "submit",
    "claim",
    "read",
    "report",
    "end",
    "learn",
    "rq",
    "beat",
    "renew",
    "reap",
    "repair",
    "poll",
    "look",
    "view",
    "idle claim",
)
COSTS = {name: Cost(redis_us=100.0, api_us=1000.0, bytes=1000.0, disk_bytes=100.0, flushes=1.0) for name in NAMES}
MEMORY, FLUSH = Memory(5000.0, 3000.0, 20_000.0), Flush(20.0, 0.0005)
MIX = Mix("60 s", 60.0, 30)


def test_with_no_gpus_there_is_no_load() -> None:
    nothing = load(0, MIX, COSTS, MEMORY, FLUSH)
    assert (nothing.jobs, nothing.api_processes, nothing.unfinished, nothing.redis_bytes) == (0, 0, 0, 0)
    assert nothing.redis < 0.002, "the queue is read and repaired, empty or not"


def test_every_load_grows_with_the_gpus() -> None:
    loads = [load(gpus, MIX, COSTS, MEMORY, FLUSH) for gpus in (10, 100, 1000)]
    for name in ("jobs", "redis", "redis_bytes", "network", "disk", "connections", "unfinished"):
        values = [getattr(one, name) for one in loads]
        assert values == sorted(values)
        assert values[0] < values[2]
    assert loads[1].jobs == pytest.approx(1.5)
    assert loads[1].connections == 6 * 100 + 40


def test_what_grows_with_the_workers_grows_with_their_square_over_all() -> None:
    each = COSTS | {"idle claim": Cost(redis_us=0.0, redis_us_each=1.0)}
    idle = [load(gpus, MIX, each, MEMORY, FLUSH).redis_parts["idle workers"] for gpus in (100, 1000)]
    assert idle[1] == pytest.approx(100 * idle[0])


def test_a_redis_that_cannot_keep_up_never_hands_out_a_job() -> None:
    assert load(100, MIX, COSTS, MEMORY, FLUSH).claim_s < 0.1
    assert load(10**6, MIX, COSTS, MEMORY, FLUSH).claim_s == float("inf")


def test_those_who_write_at_once_share_a_flush() -> None:
    few, many = (load(gpus, MIX, COSTS, MEMORY, FLUSH).redis_parts["flushes to disk"] for gpus in (1, 10**6))
    assert few > 0
    assert many <= FLUSH.us / 1e6 / FLUSH.wall_s


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_is_kept_below_the_number_that_breaks_it_and_broken_above(limit: str) -> None:
    measure, bound = LIMITS[limit]
    at = breaks_at(limit, MIX, COSTS, MEMORY, FLUSH)
    assert measure(load(0.99 * at, MIX, COSTS, MEMORY, FLUSH)) <= bound
    assert measure(load(1.01 * at, MIX, COSTS, MEMORY, FLUSH)) > bound


def calls(client: redis.Redis) -> dict[str, int]:
    """Return how often clients have called scripts, and read records."""
    said = client.info("commandstats")
    return {name: int(said.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "hgetall")}


def test_a_simulated_job_asks_what_a_workers_job_asks(make_runner: Callable[..., JobRunner], queue: Queue) -> None:
    client = queue.records.client
    queue.submit(queued())
    runner = make_runner(Quick())
    claims = take(runner)
    before = calls(client)
    runner.run(claims)
    runner.finish()
    after = calls(client)
    really = after["evalsha"] - before["evalsha"]
    steps = queued().request.num_inference_steps
    # The stand-in family tells its steps alone; a real one tells its stages and the parts of its decoding too.
    assert steps + 4 <= really <= steps + REPORTS
    asked, _ = rates(1, replace(MIX, steps=steps, seconds=1.0, busy=1.0), COSTS)
    assert asked["report"][1] + 3 == steps + REPORTS


def test_looking_for_work_in_vain_costs_the_same_however_many_workers_live(redis_url: str) -> None:
    queue, rq = open_bench(redis_url), rq_connection(redis_url, patient=True)
    workers = [SimWorker(redis_url, f"w{n}", queue, rq) for n in range(20)]
    for worker in workers:
        worker.beat()
    client = queue.records.client
    before = calls(client)["hgetall"]
    assert workers[0].claim() == []
    assert calls(client)["hgetall"] == before, "nobody asks what the others have in memory where there is no work"
    queue.submit(a_job())
    assert len(workers[0].claim()) == 1
    for worker in workers:
        worker.keeper.records.client.close()
    client.close()
    rq.close()


def test_a_small_run_ends_jobs_and_is_measured(redis_url: str) -> None:
    found = run(redis_url, 3, replace(RUN, seconds=0.1), 2.0)
    assert found.jobs > 0
    assert 0 < found.redis < 1
    assert found.claim_s >= 0


def test_a_meter_sees_what_a_call_writes(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        cost = Meter(client).cost(lambda n: client.set(f"polyreel:bench:{n}", "x" * 1000), 50)
    assert 0.9 < cost.trips < 1.2
    assert 1000 < cost.bytes < 2000
    assert 1000 < cost.disk_bytes < 2000


def test_its_tables_are_printed() -> None:
    measured = Measured(COSTS, MEMORY, FLUSH, 10.0)
    assert "| submit | 100 | 10 | - | 1 | 1000 | 1000 |" in costs_table(measured)
    pools = pool_tables(measured)
    assert [row.split(" | ")[0] for row in pools if row.startswith("| 1")] == [
        "| 10",
        "| 100",
        "| 1,000",
        "| 10,000",
    ] * 2
    assert sum(row.startswith("| max_queued") for row in pools) == 2
    *_, row = runs_table([Run(50, 7.5, 0.1, 0.02)], measured)
    assert row.startswith("| 50 | 7.5 | 10.0% | ")
