"""Which model a worker serves next, and that the lines within a model take turns."""

from __future__ import annotations

from dataclasses import Field, fields
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyreel.scheduling import FairOrder, Flow, Rule, Waiting, choose
from polyreel.terms import Lane

SWAP_S = {"wan": 40.0, "ltx": 40.0, "sd": 10.0}
NONE: frozenset[str] = frozenset()


def pick(
    waits: dict[str, float],
    resident: str = "wan",
    held_s: float = 0.0,
    warm: str = "",
    swap_s: dict[str, float] = SWAP_S,
    rule: Rule = Rule(),  # noqa: B008 - frozen
) -> str | None:
    waiting = [Waiting(model, waited_s) for model, waited_s in waits.items()]
    return choose(waiting, frozenset(resident.split()), held_s, swap_s, frozenset(warm.split()), rule)


@pytest.mark.parametrize(
    ("waits", "state", "chosen"),
    [
        ({}, {}, None),
        ({"ltx": 0.0}, {"resident": ""}, "ltx"),
        ({"wan": 1.0, "ltx": 299.0}, {"held_s": 9999.0}, "wan"),  # nobody is overdue
        ({"wan": 1.0, "ltx": 301.0}, {"held_s": 799.0}, "wan"),  # the quantum of 20 x 40 s is not over
        ({"wan": 1.0, "ltx": 301.0}, {"held_s": 800.0}, "ltx"),
        ({"wan": 302.0, "ltx": 301.0}, {"held_s": 800.0}, "wan"),  # who is in memory has waited longer
        ({"wan": 301.0, "ltx": 301.0}, {"held_s": 800.0}, "wan"),  # as long: loading must gain something
        ({"wan": 1.0, "ltx": 500.0, "sd": 400.0}, {"held_s": 200.0}, "sd"),  # a quantum of its own: 20 x 10 s
        ({"wan": 1.0, "ltx": 500.0}, {"held_s": 800.0, "warm": "ltx"}, "wan"),  # a peer has it: 600 s
        ({"wan": 1.0, "ltx": 601.0}, {"held_s": 800.0, "warm": "ltx"}, "ltx"),
        ({"ltx": 1.0, "sd": 2.0}, {}, "sd"),
        ({"ltx": 59.0}, {"warm": "ltx"}, None),  # left to the peer until 1.5 x 40 s
        ({"ltx": 60.0}, {"warm": "ltx"}, "ltx"),
        ({"ltx": 59.0, "sd": 1.0}, {"warm": "ltx"}, "sd"),
        ({"new": 44.0}, {"warm": "new"}, None),  # not measured: 30 s
        ({"new": 45.0}, {"warm": "new"}, "new"),
        ({"wan": 1.0, "new": 400.0}, {"held_s": 599.0}, "wan"),
        ({"wan": 1.0, "new": 400.0}, {"held_s": 600.0}, "new"),
        ({"sd": 7.0, "ltx": 7.0}, {}, "ltx"),  # ties by name
        ({"wan": 1.0, "ltx": 2.0}, {"resident": "ltx wan"}, "ltx"),  # both in memory: one line
        ({"wan": 1.0, "sd": 299.0}, {"resident": "ltx wan"}, "wan"),  # what is in memory before what is not
        ({"wan": 1.0, "sd": 301.0}, {"resident": "ltx wan", "held_s": 200.0}, "sd"),
        ({"ltx": 2.0}, {"resident": "ltx wan", "warm": "ltx wan"}, "ltx"),  # a peer's copy makes ours no colder
        ({"wan": 1.0, "ltx": 11.0}, {"rule": Rule(quantum_swaps=0, max_wait_s=10)}, "ltx"),
    ],
)
def test_the_rule_chooses(waits: dict[str, float], state: dict[str, object], chosen: str | None) -> None:
    assert pick(waits, **state) == chosen


def test_the_order_in_which_models_are_listed_does_not_matter() -> None:
    assert pick({"sd": 7.0, "ltx": 7.0, "wan": 0.0}, resident="") == "ltx"
    assert pick({"wan": 0.0, "ltx": 7.0, "sd": 7.0}, resident="") == "ltx"


states = st.fixed_dictionaries(
    {
        "waits": st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 2000)),
        "resident": st.lists(st.sampled_from("abcdef"), max_size=3).map(" ".join),
        "held_s": st.floats(0, 2000),
        "warm": st.lists(st.sampled_from("abcdef"), max_size=6).map(" ".join),
        "swap_s": st.dictionaries(st.sampled_from("abcdef"), st.floats(1, 100)),
    }
)


@given(states)
@settings(deadline=None)
def test_a_worker_has_no_rest_while_a_model_in_its_memory_has_work(state: dict[str, dict[str, float]]) -> None:
    chosen = pick(**state)
    assert chosen is None or chosen in state["waits"]
    if chosen is None:
        assert not set(state["waits"]) & set(str(state["resident"]).split())


@given(states)
@settings(deadline=None)
def test_what_nobody_has_in_memory_is_never_left_waiting_by_an_idle_worker(state: dict[str, dict[str, float]]) -> None:
    if pick(**state) is None:
        assert set(state["waits"]) <= set(str(state["warm"]).split())


@given(busy=st.integers(1, 3), job_s=st.floats(10, 90))
@settings(max_examples=30, deadline=None)
def test_a_model_that_must_be_loaded_starts_in_bounded_time_beside_models_that_never_run_dry(
    busy: int, job_s: float
) -> None:
    # The models in memory have a backlog of 100 jobs each, submitted before: these go first, and no newer one does.
    loaded = [f"busy{number}" for number in range(busy)]
    queues = {model: [-1000.0 + 10 * n for n in range(100)] + [1.0 + n for n in range(1000)] for model in loaded}
    now, served = 0.0, 0
    while True:
        waits = {model: now - queue[0] for model, queue in queues.items()} | {"rare": now - 0.0}
        chosen = pick(waits, " ".join(loaded), held_s=now, swap_s={})
        if chosen == "rare":
            break
        queues[str(chosen)].pop(0)
        now, served = now + job_s, served + 1
    assert now <= max(600.0, 100 * busy * job_s) + job_s


@pytest.mark.parametrize("field", fields(Rule), ids=lambda field: str(field.name))
def test_the_page_names_each_number_of_the_rule_and_its_default(field: Field[float]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text()
    assert f"| `{field.name}` | {field.default:g} |" in page


def order_of(fair: FairOrder) -> list[str]:
    return [ticket.job_id for ticket in fair.order()]


def fill(*jobs: str, batch_key: str = "") -> FairOrder:
    """Return an order of jobs called by their owner and a number, e.g. "a1"; capitals are bulk."""
    fair = FairOrder()
    for job in jobs:
        fair.add(job, flow_of(job), batch_key)
    return fair


def flow_of(job: str) -> Flow:
    return Flow(job[0].lower(), "bulk" if job[0].isupper() else "interactive")


@pytest.mark.parametrize(
    ("jobs", "order"),
    [
        ("", ""),
        ("a1 a2 a3", "a1 a2 a3"),
        ("a1 a2 a3 b1 b2", "a1 b1 a2 b2 a3"),
        ("b1 a1 a2 b2", "b1 a1 b2 a2"),
        ("A1 A2 a1 a2 a3 a4 a5", "A1 a1 a2 a3 a4 A2 a5"),  # four interactive ones for one of bulk
        ("A1 A2 B1 B2", "A1 B1 A2 B2"),  # bulk against bulk is even
    ],
)
def test_lines_take_turns(jobs: str, order: str) -> None:
    assert order_of(fill(*jobs.split())) == order.split()


def test_who_comes_late_is_next_and_has_no_credit_for_the_time_before() -> None:
    fair = fill(*[f"a{number}" for number in range(9)])
    claimed = [fair.claim() for _ in range(5)]
    for job in ("b1", "b2", "b3"):
        fair.add(job, flow_of(job))
    assert claimed == [["a0"], ["a1"], ["a2"], ["a3"], ["a4"]]
    assert order_of(fair) == ["b1", "a5", "b2", "a6", "b3", "a7", "a8"]


def test_nobody_is_owed_anything_once_nobody_waits() -> None:
    fair = fill(*[f"a{number}" for number in range(9)])
    while fair:
        fair.claim()
    for job in ("a10", "b1"):
        fair.add(job, flow_of(job))
    assert order_of(fair) == ["a10", "b1"]


def test_a_job_that_waits_already_is_not_added_again() -> None:
    fair = fill("a1", "b1", "a1")
    assert order_of(fair) == ["a1", "b1"]


def test_a_line_does_not_pay_for_what_it_cancelled() -> None:
    fair = fill("a1", "a2", "a3", "a4", "b1", "b2", "b3")
    for job in ("a1", "a2", "a3", "never-heard-of"):
        fair.remove(job)
    fair.add("a5", flow_of("a5"))
    assert order_of(fair) == ["a4", "b1", "a5", "b2", "b3"]


def test_followers_share_the_heads_key_and_come_in_fair_order() -> None:
    fair = fill("a1", "a2", "a3", "b1", "b2", batch_key="k")
    fair.add("b0", flow_of("b0"), "other")
    assert fair.claim(4) == ["a1", "b1", "a2", "b2"]
    assert order_of(fair) == ["b0", "a3"]


@pytest.mark.parametrize(("batch_key", "limit", "claimed"), [("", 4, ["a1"]), ("k", 1, ["a1"]), ("k", 2, ["a1", "a2"])])
def test_a_claim_takes_no_more_than_may_share_the_call(batch_key: str, limit: int, claimed: list[str]) -> None:
    assert fill("a1", "a2", "a3", batch_key=batch_key).claim(limit) == claimed


def test_a_follower_from_far_behind_does_not_put_newcomers_after_all_before_it() -> None:
    fair = FairOrder()
    fair.add("a0", flow_of("a0"), "k")
    for number in range(1, 50):
        fair.add(f"a{number}", flow_of("a"), "")
    fair.add("a50", flow_of("a"), "k")
    assert fair.claim(2) == ["a0", "a50"]
    fair.add("b1", flow_of("b"))
    assert order_of(fair)[:2] == ["b1", "a1"]


def test_an_empty_order_gives_nothing() -> None:
    assert FairOrder().claim(4) == []


WEIGHT = {"interactive": 4, "bulk": 1}

events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abcABC"), st.sampled_from(["", "k", "l"])),
        st.tuples(st.just("flood"), st.sampled_from("abcABC"), st.sampled_from(["", "k", "l"])),
        st.tuples(st.just("claim"), st.integers(1, 4), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 40), st.none()),
    ),
    max_size=60,
)


@given(events)
@settings(max_examples=200, deadline=None)
def test_a_head_starts_within_its_turn_however_many_jobs_others_have(story: list[tuple[str, object, object]]) -> None:
    """Law: between a job becoming the head of its line and its start, each other line starts at most
    ceil(its weight / this weight) jobs at the head of a claim. Nothing is lost and nothing runs twice."""
    fair = FairOrder()
    lines: dict[Flow, list[str]] = {}
    passed: dict[Flow, dict[Flow, int]] = {}
    submitted: list[str] = []
    gone: list[str] = []

    def add(letter: str, batch_key: str) -> None:
        job = f"{letter}{len(submitted)}"
        submitted.append(job)
        fair.add(job, flow_of(job), batch_key)
        lines.setdefault(flow_of(job), []).append(job)

    def leave(job: str) -> None:
        gone.append(job)
        line = lines[flow_of(job)]
        if line[0] == job:
            passed.pop(flow_of(job), None)  # the next one is the head from here
        line.remove(job)

    def claim(limit: int) -> None:
        jobs = fair.claim(limit)
        assert bool(jobs) == any(lines.values())
        if not jobs:
            return
        server = flow_of(jobs[0])
        assert lines[server][0] == jobs[0]
        for flow, line in lines.items():
            if line and flow != server:
                count = passed.setdefault(flow, {})
                count[server] = count.get(server, 0) + 1
                assert count[server] <= ceil(WEIGHT[server.lane] / WEIGHT[flow.lane])
        for job in jobs:
            leave(job)

    for kind, what, batch_key in story:
        if kind == "add":
            add(str(what), str(batch_key))
        elif kind == "flood":
            for _ in range(10):
                add(str(what), str(batch_key))
        elif kind == "claim":
            claim(int(str(what)))
        elif submitted and submitted[int(str(what)) % len(submitted)] not in gone:
            job = submitted[int(str(what)) % len(submitted)]
            fair.remove(job)
            leave(job)
    while fair:
        claim(4)
    assert sorted(gone) == sorted(submitted)


@given(
    owners=st.integers(2, 6),
    floods=st.integers(1, 30),
    before=st.integers(0, 20),
    lane=st.sampled_from(["bulk", "interactive"]),
)
@settings(deadline=None)
def test_two_claims_are_enough_between_two_keys_and_one_more_for_each_further_key(
    owners: int, floods: int, before: int, lane: Lane
) -> None:
    fair = FairOrder()
    for number in range(owners - 1):
        for job in range(floods):
            fair.add(f"{number}-{job}", Flow(f"flood-{number}", lane))
    for _ in range(min(before, len(fair) - 1)):
        fair.claim()
    fair.add("mine", Flow("me", lane))
    claims = [job for _ in range(owners) for job in fair.claim()]
    assert "mine" in claims
