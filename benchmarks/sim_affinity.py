"""Waiting time of jobs under several rules for "which model next?", by event simulation; no process, no Redis.

What it isolates: the choice of the model alone. Jobs of each model arrive by a Poisson process, the models' shares are
60/30/10 % of three and by Zipf's law of other numbers, a job takes 25-90 s, and a model that is not in a worker's
memory takes 40 s to load. The same jobs, in the same order and at the same times, go through every rule. Control: one
FIFO over all models. "Load" is the work without loading over what the GPUs can do, so under a rule that loads often
the queue may grow to the end of the run, and its figures with the length of the run. A wait lasts from submit until the
job denoises, loading included.

The last rule is `polyreel.scheduling.choose` itself, and the second table is of `polyreel.scheduling.FairOrder`: one
model, one key that floods and one that asks now and then.

Run: python -m benchmarks.sim_affinity [--gpus 2 --models 3 --seeds 3]
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import mean

from polyreel.scheduling import FairOrder, Flow, Rule, Waiting, choose

SWAP_S = 40.0
SHORTEST_S, LONGEST_S = 25.0, 90.0
LOADS = (0.75, 0.9)

#: (GPUs, models, models that a GPU holds at once) of the default run.
SIZES = ((2, 3, 1), (2, 3, 2), (8, 6, 1), (64, 12, 1))

#: A worker with nothing to do looks again after this long, seconds.
LOOK_S = 2.0

ROW = "| {:37} | {:>9} | {:>14} | {:>14} | {:>14} |"
FAIR_ROW = "| {:30} | {:>6} | {:>13} | {:>13} |"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job: when it is submitted, of which model, and how long it denoises, seconds."""

    at: float
    model: str
    seconds: float
    owner: str = ""


NEVER = Arrival(inf, "", 0.0)


@dataclass(slots=True, eq=False)
class Gpu:
    """A worker with one GPU."""

    #: Models in memory, the one that was used last at the end.
    resident: OrderedDict[str, None] = field(default_factory=OrderedDict)
    loaded_at: float = 0.0
    turn: int = 0
    #: The job that it has or had, and when that denoises and ends.
    number: int = -1
    starts_at: float = 0.0
    ends_at: float = 0.0


Policy = Callable[["Fleet", Gpu, float], "str | None"]


@dataclass(slots=True)
class Fleet:
    """What a policy may look at.

    Args:
        models: in the order of their shares, the most popular first.
        queues: the waiting jobs of each model, as (submitted at, number of the job).
        warm: how many GPUs have a model in memory.
    """

    models: list[str]
    queues: dict[str, deque[tuple[float, int]]]
    gpus: list[Gpu]
    chance: random.Random
    warm: Counter[str] = field(default_factory=Counter)

    def heads(self) -> list[tuple[float, int, str]]:
        return [(*queue[0], model) for model, queue in self.queues.items() if queue]


def fifo(fleet: Fleet, gpu: Gpu, now: float) -> str | None:
    return min(fleet.heads(), default=(0, 0, None))[2]


def list_order(fleet: Fleet, gpu: Gpu, now: float) -> str | None:
    return next((model for model in fleet.models if fleet.queues[model]), None)


def round_robin(fleet: Fleet, gpu: Gpu, now: float) -> str | None:
    """As RQ does it: each worker goes on behind the queue that it took from last."""
    count = len(fleet.models)
    for offset in range(count):
        place = (gpu.turn + offset) % count
        if fleet.queues[fleet.models[place]]:
            gpu.turn = place + 1
            return fleet.models[place]
    return None


def at_random(fleet: Fleet, gpu: Gpu, now: float) -> str | None:
    waiting = [model for model in fleet.models if fleet.queues[model]]
    return fleet.chance.choice(waiting) if waiting else None


def resident_first(fleet: Fleet, gpu: Gpu, now: float) -> str | None:
    heads = fleet.heads()
    return min((h for h in heads if h[2] in gpu.resident), default=min(heads, default=(0, 0, None)))[2]


def fixed_overdue(fleet: Fleet, gpu: Gpu, now: float) -> str | None:
    """Stay on the resident model unless another head has waited for 300 s: no quantum."""
    overdue = min((h for h in fleet.heads() if now - h[0] > 300), default=None)
    return overdue[2] if overdue else resident_first(fleet, gpu, now)


def ours(rule: Rule) -> Policy:
    """Return the server's own rule, not a copy of it."""

    def policy(fleet: Fleet, gpu: Gpu, now: float) -> str | None:
        return choose(
            [Waiting(model, now - at) for at, _, model in fleet.heads()],
            frozenset(gpu.resident),
            now - gpu.loaded_at,
            dict.fromkeys(fleet.models, SWAP_S),
            frozenset(model for model, count in fleet.warm.items() if count > (model in gpu.resident)),
            rule,
        )

    return policy


def staying(fleet: Fleet, gpu: Gpu, now: float) -> str | None:
    """Our rule, but on the model that was used last while it has work, where ours takes the longest wait in memory."""
    model = ours(Rule())(fleet, gpu, now)
    last = next(reversed(gpu.resident), "")
    return last if model in gpu.resident and fleet.queues[last] else model


FIFO = "one FIFO (control)"
OURS = "polyreel.scheduling.choose"
OURS_WITHIN = "polyreel.scheduling.FairOrder"

POLICIES: dict[str, Policy] = {
    FIFO: fifo,
    "RQ default: list order": list_order,
    "RQ round_robin": round_robin,
    "RQ random": at_random,
    "resident first, no ageing": resident_first,
    "resident first, overdue (300 s) first": fixed_overdue,
    "choose, but staying on one in memory": staying,
    OURS: ours(Rule()),
}


@dataclass(frozen=True, slots=True)
class Start:
    """A job that a GPU took.

    Args:
        number: of the job.
        at: when it denoises, its model being in memory by then.
    """

    number: int
    at: float
    gpu: Gpu
    swapped: bool


def shares(models: int) -> list[float]:
    """Return what part of the jobs is of each model: 60/30/10 % for three, by Zipf's law for others."""
    if models == 3:
        return [0.6, 0.3, 0.1]
    weights = [1 / rank for rank in range(1, models + 1)]
    return [weight / sum(weights) for weight in weights]


def names(models: int) -> list[str]:
    return [f"model-{number:02}" for number in range(models)]


def arrivals(gpus: int, models: int, load: float, jobs: int, seed: int) -> list[Arrival]:
    """Return jobs in the order of their arrival."""
    chance = random.Random(seed)
    pause_s = (SHORTEST_S + LONGEST_S) / 2 / (load * gpus)
    found, now = [], 0.0
    for model in chance.choices(names(models), shares(models), k=jobs):
        now += chance.expovariate(1 / pause_s)
        found.append(Arrival(now, model, chance.uniform(SHORTEST_S, LONGEST_S)))
    return found


def simulate(
    jobs: Sequence[Arrival],
    models: int,
    gpus: int,
    policy: Policy,
    *,
    capacity: int = 1,
    seed: int = 0,
    submitted: Callable[[Fleet, int], None] = lambda fleet, number: None,
) -> Iterator[Start]:
    """Run jobs through a policy and yield each start as it happens.

    Args:
        jobs: in the order of their arrival.
        capacity: models that a GPU holds at once; the one that was not used for longest makes room.
        seed: of a policy that draws lots.
        submitted: called with the fleet and a job's number once the job is in its queue or on a GPU.
    """
    queues = {model: deque[tuple[float, int]]() for model in names(models)}
    fleet = Fleet(names(models), queues, [Gpu() for _ in range(gpus)], random.Random(seed))
    idle = list(fleet.gpus)
    ends: list[tuple[float, int, Gpu]] = []  # by the number of the start, as GPUs have no order
    upcoming = iter(enumerate(jobs))
    next_number, next_job = next(upcoming)
    started, look_at = 0, inf
    while started < len(jobs):
        now = min(next_job.at, look_at, ends[0][0] if ends else inf)
        while ends and ends[0][0] <= now:
            idle.append(heapq.heappop(ends)[2])
        new = []
        while next_job.at <= now:
            new.append(next_number)
            queues[next_job.model].append((next_job.at, next_number))
            next_number, next_job = next(upcoming, (0, NEVER))
        for gpu in list(idle):
            model = policy(fleet, gpu, now) if any(queues.values()) else None
            if model is not None:
                idle.remove(gpu)
                start = Start(queues[model].popleft()[1], now, gpu, model not in gpu.resident)
                yield (start := take(fleet, start, model, capacity))
                gpu.number, gpu.starts_at = start.number, start.at
                gpu.ends_at = start.at + jobs[start.number].seconds
                heapq.heappush(ends, (gpu.ends_at, started, gpu))
                started += 1
        for number in new:
            submitted(fleet, number)
        look_at = now + LOOK_S if idle and any(queues.values()) else inf


def take(fleet: Fleet, start: Start, model: str, capacity: int) -> Start:
    """Bring the model into memory, and return when the job denoises."""
    gpu = start.gpu
    if start.swapped:
        start = replace(start, at=start.at + SWAP_S)
        gpu.loaded_at = start.at
        if len(gpu.resident) >= capacity:
            fleet.warm[gpu.resident.popitem(last=False)[0]] -= 1
        gpu.resident[model] = None
        fleet.warm[model] += 1
    gpu.resident.move_to_end(model)
    return start


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run: loads of a model per job; seconds from submit until it denoises."""

    swaps: float
    mean_s: float
    p95_s: float
    max_s: float


def measure(jobs: Sequence[Arrival], models: int, gpus: int, policy: Policy, capacity: int, seed: int) -> Figures:
    starts = list(simulate(jobs, models, gpus, policy, capacity=capacity, seed=seed))
    waits = sorted(start.at - jobs[start.number].at for start in starts)
    swaps = sum(start.swapped for start in starts)
    return Figures(swaps / len(jobs), mean(waits), waits[int(0.95 * len(waits))], waits[-1])


def compare(gpus: int, models: int, load: float, *, jobs: int, seeds: int, capacity: int = 1) -> dict[str, Figures]:
    """Return the figures of every policy: means over the seeds, and the longest wait of all."""
    found = {}
    for name, policy in POLICIES.items():
        if policy is staying and capacity == 1:
            continue  # one in memory is the one that it stays on
        runs = [
            measure(arrivals(gpus, models, load, jobs, seed), models, gpus, policy, capacity, seed)
            for seed in range(seeds)
        ]
        found[name] = Figures(
            mean(run.swaps for run in runs),
            mean(run.mean_s for run in runs),
            mean(run.p95_s for run in runs),
            max(run.max_s for run in runs),
        )
    return found


class Arrived:
    """One model's jobs in the order of their arrival."""

    def __init__(self, jobs: Sequence[Arrival]) -> None:
        self.jobs = jobs
        self.waiting: list[tuple[float, int]] = []

    def add(self, number: int) -> None:
        heapq.heappush(self.waiting, (self.jobs[number].at, number))

    def claim(self) -> int | None:
        return heapq.heappop(self.waiting)[1] if self.waiting else None


class Seconds(Arrived):
    """Start-time fair queuing in which a turn costs the seconds of its job: what `FairOrder` does not do."""

    def __init__(self, jobs: Sequence[Arrival]) -> None:
        super().__init__(jobs)
        self.virtual_time = 0.0
        self.next_tag: dict[str, float] = {}

    def add(self, number: int) -> None:
        job = self.jobs[number]
        tag = max(self.virtual_time, self.next_tag.get(job.owner, 0.0))
        self.next_tag[job.owner] = tag + job.seconds
        heapq.heappush(self.waiting, (tag, number))

    def claim(self) -> int | None:
        self.virtual_time = self.waiting[0][0] if self.waiting else self.virtual_time
        return super().claim()


class Turns(Arrived):
    """The server's own order, not a copy of it."""

    def __init__(self, jobs: Sequence[Arrival]) -> None:
        super().__init__(jobs)
        self.fair = FairOrder()

    def add(self, number: int) -> None:
        self.fair.add(str(number), Flow(self.jobs[number].owner))

    def claim(self) -> int | None:
        return next((int(job_id) for job_id in self.fair.claim()), None)


ORDERS: dict[str, type[Arrived]] = {
    "order of arrival (control)": Arrived,
    "fair, a turn costs its seconds": Seconds,
    OURS_WITHIN: Turns,
}


def flood() -> list[Arrival]:
    """Return 600 jobs of 25 s of one key at once, and from another five of 90 s each half hour, for four hours."""
    jobs = [Arrival(0.0, "m", 25.0, "flood") for _ in range(600)]
    return jobs + [Arrival(60.0 + 1800 * time, "m", 90.0, "other") for time in range(8) for _ in range(5)]


@dataclass(frozen=True, slots=True)
class Fairness:
    """What the key that does not flood meets.

    Args:
        passed: most jobs of the flood that started while one job of this key was at the head of its key's line.
        mean_s, max_s: seconds from submit to start.
    """

    passed: int
    mean_s: float
    max_s: float


def measure_fairness(jobs: Sequence[Arrival], make: type[Arrived], gpus: int = 2) -> Fairness:
    order, free, upcoming = make(jobs), [0.0] * gpus, 0
    starts: list[tuple[float, int]] = []
    while len(starts) < len(jobs):
        now = heapq.heappop(free)
        while upcoming < len(jobs) and jobs[upcoming].at <= now:
            order.add(upcoming)
            upcoming += 1
        number = order.claim()
        if number is None:
            heapq.heappush(free, jobs[upcoming].at)
            continue
        starts.append((now, number))
        heapq.heappush(free, now + jobs[number].seconds)
    waits = [now - jobs[number].at for now, number in starts if jobs[number].owner == "other"]
    return Fairness(passed(jobs, starts), mean(waits), max(waits))


def passed(jobs: Sequence[Arrival], starts: Sequence[tuple[float, int]]) -> int:
    """Return the most starts of "flood" between a job of "other" becoming its line's head and its start."""
    most, count, previous = 0, 0, -inf
    for place, (_, number) in enumerate(starts):
        if jobs[number].owner == "flood":
            continue
        head_since = max(previous, jobs[number].at)
        count = sum(at >= head_since and jobs[n].owner == "flood" for at, n in starts[:place])
        most, previous = max(most, count), starts[place][0]
    return most


def ratio(value: float, control: float) -> str:
    return f"{value:,.0f} ({value / control:.2f})" if control else f"{value:,.0f}"


def print_models(gpus: int, models: int, load: float, figures: dict[str, Figures], about: str) -> None:
    print(f"\n{gpus} GPUs, {models} models, load {load}, {about}\n")
    print(ROW.format("model of the next job", "swaps/job", "mean wait, s", "p95, s", "max, s"))
    print(ROW.format("---", "---", "---", "---", "---"))
    control = figures[FIFO]
    for name, run in figures.items():
        cells = [ratio(getattr(run, key), getattr(control, key)) for key in ("mean_s", "p95_s", "max_s")]
        print(ROW.format(name, f"{run.swaps:.2f}", *cells))


def print_keys() -> None:
    print("\n2 GPUs, 1 model; one key submits 600 jobs of 25 s at once, another five of 90 s each half hour\n")
    print(FAIR_ROW.format("order within the model", "passed", "mean wait, s", "max wait, s"))
    print(FAIR_ROW.format("---", "---", "---", "---"))
    jobs = sorted(flood(), key=lambda job: job.at)
    runs = {name: measure_fairness(jobs, make) for name, make in ORDERS.items()}
    control = runs["order of arrival (control)"]
    for name, run in runs.items():
        row = (str(run.passed), ratio(run.mean_s, control.mean_s), ratio(run.max_s, control.max_s))
        print(FAIR_ROW.format(name, *row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, help="2 to 64; without it and --models, several sizes are run")
    parser.add_argument("--models", type=int, help="3 to 12")
    parser.add_argument("--capacity", type=int, default=1, help="models that a GPU holds at once")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, help="of one run; default: 5000 and 125 more for each GPU")
    args = parser.parse_args()
    chosen = ((args.gpus or 2, args.models or 3, args.capacity),)
    for gpus, models, capacity in chosen if args.gpus or args.models else SIZES:
        jobs = args.jobs or 5000 + 125 * gpus
        about = f"{capacity} in memory, {jobs} jobs, {args.seeds} seeds; in brackets: the ratio to one FIFO"
        for load in LOADS:
            figures = compare(gpus, models, load, jobs=jobs, seeds=args.seeds, capacity=capacity)
            print_models(gpus, models, load, figures, about)
    print_keys()


if __name__ == "__main__":
    main()
