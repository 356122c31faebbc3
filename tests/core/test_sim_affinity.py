"""The simulation behind docs/scheduling.md, small: what the rule gains, and that it is the server's own."""

from __future__ import annotations

import pytest

from benchmarks import sim_affinity
from benchmarks.sim_affinity import FIFO, ORDERS, OURS, Arrival, Figures, arrivals, compare, flood, measure_fairness


@pytest.fixture(scope="module")
def figures() -> dict[str, Figures]:
    return compare(gpus=2, models=3, load=0.75, jobs=1500, seeds=2)


def test_the_rule_waits_a_fifth_of_one_fifo_at_most_and_loads_less_than_all_others(
    figures: dict[str, Figures],
) -> None:
    ours, fifo = figures[OURS], figures[FIFO]
    assert ours.mean_s < 0.2 * fifo.mean_s
    assert ours.p95_s < 0.3 * fifo.p95_s
    assert ours.max_s < 0.5 * fifo.max_s
    assert ours.swaps < 0.6 * fifo.swaps
    assert ours.swaps == min(run.swaps for run in figures.values())


def test_rqs_own_orders_wait_longer(figures: dict[str, Figures]) -> None:
    for name in ("RQ default: list order", "RQ round_robin", "RQ random"):
        assert figures[name].mean_s > 2 * figures[OURS].mean_s
        assert figures[name].max_s > 2 * figures[OURS].max_s


def test_models_in_memory_share_one_line_rather_than_being_served_one_by_one() -> None:
    runs = compare(gpus=2, models=3, load=0.9, jobs=1500, seeds=2, capacity=2)
    assert runs[OURS].max_s < runs["choose, but staying on one in memory"].max_s
    assert runs[OURS].mean_s < 1.1 * runs["choose, but staying on one in memory"].mean_s


def test_a_flood_lets_another_key_pass_at_every_second_claim() -> None:
    jobs = sorted(flood(), key=lambda job: job.at)
    runs = {name: measure_fairness(jobs, make) for name, make in ORDERS.items()}
    assert runs["polyreel.scheduling.FairOrder"].passed == 1
    assert runs["order of arrival (control)"].passed > 100
    assert runs["fair, a turn costs its seconds"].passed > 1


@pytest.mark.parametrize("policy", sim_affinity.POLICIES.values(), ids=sim_affinity.POLICIES)
def test_every_policy_starts_each_job_once_and_none_before_it_was_submitted(policy: sim_affinity.Policy) -> None:
    jobs = arrivals(gpus=2, models=3, load=0.75, jobs=200, seed=1)
    starts = list(sim_affinity.simulate(jobs, 3, 2, policy))
    assert sorted(start.number for start in starts) == list(range(200))
    assert all(start.at >= jobs[start.number].at for start in starts)


def test_one_gpu_does_one_job_after_the_other_and_loads_what_it_does_not_have() -> None:
    jobs = [Arrival(0, "model-00", 30), Arrival(1, "model-01", 50), Arrival(2, "model-00", 20)]
    starts = list(sim_affinity.simulate(jobs, 2, 1, sim_affinity.POLICIES[OURS]))
    assert [(start.number, start.at, start.swapped) for start in starts] == [
        (0, 40, True),
        (2, 70, False),
        (1, 130, True),
    ]


def test_both_tables_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["sim_affinity", "--gpus", "2", "--models", "4", "--seeds", "1", "--jobs", "60"])
    sim_affinity.main()
    printed = capsys.readouterr().out
    assert "2 GPUs, 4 models, load 0.75, 1 in memory, 60 jobs, 1 seeds" in printed
    assert "| one FIFO (control) " in printed
    assert "| polyreel.scheduling.FairOrder  |      1 |" in printed
