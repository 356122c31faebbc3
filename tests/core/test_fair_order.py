"""The order of the waiting jobs and the choice between models, as Redis keeps them.

`polyreel.scheduling` says what is right, in plain Python with laws of its own; here the claim is held to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyreel.job import SCHEMA, JobStatus
from polyreel.leases import Claim, Leases, Wishes
from polyreel.limits import KeyLimits
from polyreel.queue import Queue
from polyreel.scheduling import DEFAULT_SWAP_S, FairOrder, Flow, Rule, Waiting, choose
from polyreel.terms import LANES, Lane, Terms
from tests.core.jobs import (
    MODEL,
    assert_all_adds_up,
    claim,
    of,
    open_queue,
    order,
    queued,
    read,
    reap,
    redis_time,
    run_out,
)

#: Few, but with a real Redis and all scripts in each.
FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    queue.records.client.close()


def submit(
    queue: Queue,
    owner: str = "alice",
    lane: Lane = "interactive",
    batch_key: str = "",
    max_running: int | None = None,
    account: str = "",
) -> str:
    """Submit a job that shares calls with those of its key; return its id."""
    job = queued(owner=owner, lane=lane, batch_key=batch_key, account=account)
    limits = KeyLimits(max_running=max_running)
    return queue.records.create(job, 10**6, terms=Terms(lane=lane, limits=limits)).job.id


def serve(queue: Queue, limit: int = 1) -> list[str]:
    """Let a worker claim and finish; return what it had."""
    claims = claim(queue, batches={MODEL: [(10**9, limit)]})
    for one in claims:
        assert queue.records.advance(one.job_id, one.fence, JobStatus.SUCCEEDED)
    return [one.job_id for one in claims]


def owners(queue: Queue, job_ids: list[str]) -> str:
    """Return the first letters of the jobs' owners."""
    return "".join(read(queue, job_id).job.owner[0] for job_id in job_ids)


def test_lines_take_turns_whatever_their_lengths(queue: Queue) -> None:
    for _ in range(6):
        submit(queue, "alice")
    for _ in range(3):
        submit(queue, "bob")
    assert owners(queue, order(queue.records.client)) == "abababaaa"


def test_jobs_of_one_line_keep_the_order_of_their_coming(queue: Queue) -> None:
    jobs = [submit(queue) for _ in range(30)]
    assert order(queue.records.client) == jobs
    assert [serve(queue) for _ in jobs] == [[job] for job in jobs]


def test_a_newcomer_is_next_but_one_however_long_the_other_line(queue: Queue) -> None:
    for _ in range(60):
        submit(queue, "alice")
    for _ in range(25):
        serve(queue)
    mine = submit(queue, "bob")
    assert mine in [*serve(queue), *serve(queue)]


@pytest.mark.parametrize(("served", "expected"), [(0, "abababab"), (1, "babababa"), (7, "bbababab")])
def test_a_line_that_was_away_gets_no_credit(queue: Queue, served: int, expected: str) -> None:
    """But for the turn that is served when it comes back, which it may have too."""
    submit(queue, "bob")
    for _ in range(20):
        submit(queue, "alice")
    for _ in range(1 + served):
        serve(queue)
    for _ in range(5):
        submit(queue, "bob")
    assert owners(queue, order(queue.records.client))[:8] == expected


def test_lanes_share_by_weight_and_nobody_starves(queue: Queue) -> None:
    for _ in range(40):
        submit(queue, "alice", "interactive")
        submit(queue, "bob", "bulk")
    served = owners(queue, order(queue.records.client))
    assert [served[start : start + 5].count("b") for start in range(0, 40, 5)] == [1] * 8


def test_a_batch_takes_followers_in_fair_order(queue: Queue) -> None:
    a1, a2, a3 = (submit(queue, "alice", batch_key="k") for _ in range(3))
    b1, b2 = (submit(queue, "bob", batch_key="k") for _ in range(2))
    other = submit(queue, "bob", batch_key="other")
    assert serve(queue, 4) == [a1, b1, a2, b2]
    assert order(queue.records.client) == [other, a3]


def test_a_follower_delays_nobody_beyond_its_claim(queue: Queue) -> None:
    """Followers from far behind must not put a newcomer after all those that they passed."""
    submit(queue, "alice", batch_key="k")
    for _ in range(40):
        submit(queue, "alice")
    submit(queue, "alice", batch_key="k")
    assert len(serve(queue, 2)) == 2
    submit(queue, "bob")
    assert owners(queue, order(queue.records.client)[:3]) == "baa"


def test_what_was_cancelled_leaves_no_gap(queue: Queue) -> None:
    """Its owner is not punished for jobs that never ran."""
    jobs = [submit(queue, "alice") for _ in range(20)]
    for _ in range(20):
        submit(queue, "bob")
    for job in jobs[:19]:
        assert queue.cancel(job) == "cancelled"
    submit(queue, "alice")
    assert owners(queue, order(queue.records.client)[:4]) == "abab"


def test_cancelling_buys_no_turns(queue: Queue) -> None:
    """Else whoever submits a second job and cancels it would always be first."""
    for _ in range(5):
        submit(queue, "bob")
    served = ""
    for _ in range(6):
        submit(queue, "alice")
        served += owners(queue, serve(queue))
        queue.cancel(submit(queue, "alice"))
    assert served == "bababa"


def test_places_begin_anew_once_nobody_waits(queue: Queue) -> None:
    """Or they would grow for ever, and the owners that they remember with them."""
    client = queue.records.client
    first = submit(queue, "alice")
    place = client.zscore(f"polyreel:ready:{MODEL}", first)
    for number in range(20):
        submit(queue, f"owner {number}")
    while serve(queue):
        pass
    last = submit(queue, "bob")
    assert client.zscore(f"polyreel:ready:{MODEL}", last) == place
    assert client.hlen(f"polyreel:fair:{MODEL}") == 4


def test_a_retried_job_keeps_its_place(queue: Queue) -> None:
    first, *others = (submit(queue) for _ in range(4))
    submit(queue, "bob")
    before = order(queue.records.client)
    [taken] = claim(queue)
    run_out(queue.records.client, first)
    assert reap(queue.leases) == {first: "queued"}
    assert order(queue.records.client) == before
    assert taken.job_id == first
    assert others == [job for job in before if job in others]


def test_a_retried_job_keeps_its_place_before_those_that_came_after_the_order_began_anew(queue: Queue) -> None:
    retried = [submit(queue) for _ in range(3)]
    while claim(queue):
        pass
    later = [submit(queue, owner) for owner in ("bob", "alice", "bob")]
    run_out(queue.records.client, *retried)
    assert len(reap(queue.leases)) == 3
    assert order(queue.records.client)[:3] == retried
    assert set(order(queue.records.client)[3:]) == set(later)


def test_jobs_that_are_handed_back_wait_before_all_others_the_oldest_first(queue: Queue) -> None:
    """They had their turn, or shared it; and the line has no more turns than before."""
    alices = [submit(queue, "alice", batch_key="k" if number % 2 == 0 else "") for number in range(6)]
    for _ in range(6):
        submit(queue, "bob")
    claims = claim(queue, batches={MODEL: [(10**9, 4)]})
    assert [one.job_id for one in claims] == [alices[0], alices[2], alices[4]]
    rest = order(queue.records.client)
    assert owners(queue, rest) == "bababab" + "bb"
    for one in reversed(claims):
        assert queue.records.release(one.job_id, one.fence, counted=False)
    assert order(queue.records.client) == [alices[0], alices[2], alices[4], *rest]
    assert_all_adds_up(queue.records.client)


def test_a_head_that_is_handed_back_waits_behind_an_older_follower_of_its_line(queue: Queue) -> None:
    """The older one shared another owner's call, so the younger one had its turn."""
    submit(queue, "bob", batch_key="k")
    older, younger = submit(queue, "alice", batch_key="k"), submit(queue, "alice")
    [_, follower] = claim(queue, batches={MODEL: [(10**9, 2)]})
    [head] = claim(queue)
    assert (follower.job_id, head.job_id) == (older, younger)
    for one in (follower, head):
        assert queue.records.release(one.job_id, one.fence, counted=False)
    assert order(queue.records.client) == [older, younger]


def test_followers_that_their_owner_takes_again_leave_no_gap(queue: Queue) -> None:
    alices = [submit(queue, "alice", batch_key="k" if number < 3 else "") for number in range(6)]
    for _ in range(6):
        submit(queue, "bob")
    claims = claim(queue, batches={MODEL: [(10**9, 3)]})
    before = order(queue.records.client)
    run_out(queue.records.client, *alices[:3])
    reap(queue.leases)
    assert order(queue.records.client)[0] == alices[0]
    assert queue.leases.renew("one", claims) == ["ok"] * 3
    assert order(queue.records.client) == before
    assert_all_adds_up(queue.records.client)


@FEW
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from("abc"), st.sampled_from(LANES), st.sampled_from(["", "k", "l"])),
            st.tuples(st.just("claim"), st.integers(1, 4)),
            st.tuples(st.just("cancel"), st.integers(0, 30)),
        ),
        max_size=40,
    )
)
def test_redis_keeps_the_order_of_fair_order(queue: Queue, steps: list[tuple[object, ...]]) -> None:
    queue.records.client.flushall()
    fair = FairOrder()
    for action, *values in steps:
        if action == "add":
            owner, lane, key = values
            fair.add(submit(queue, owner, lane, key), Flow(owner, lane), key)
        elif action == "claim":
            assert serve(queue, *values) == fair.claim(*values)
        elif len(fair):
            job_id = fair.order()[values[0] % len(fair)].job_id
            queue.cancel(job_id)
            fair.remove(job_id)
        assert order(queue.records.client) == [ticket.job_id for ticket in fair.order()]
    assert_all_adds_up(queue.records.client)


def hold(queue: Queue, limit: int = 1) -> list[Claim]:
    """Let a worker claim jobs and keep them."""
    return claim(queue, batches={MODEL: [(10**9, limit)]})


def end(queue: Queue, *claims: Claim) -> None:
    for one in claims:
        assert queue.records.advance(one.job_id, one.fence, JobStatus.SUCCEEDED)


def test_a_key_runs_so_many_jobs_at_a_time_and_holds_nobody_else_up(queue: Queue) -> None:
    mine = [submit(queue, "alice", max_running=2) for _ in range(100)]
    others = [submit(queue, "bob") for _ in range(3)]
    claims = [one for _ in range(6) for one in hold(queue)]
    assert [one.job_id for one in claims] == [mine[0], others[0], mine[1], others[1], others[2]]
    end(queue, claims[0])
    assert [one.job_id for one in hold(queue)] == [mine[2]]
    assert hold(queue) == []
    assert_all_adds_up(queue.records.client)


def test_a_model_whose_jobs_may_not_run_is_passed_over_for_another(queue: Queue) -> None:
    submit(queue, max_running=1)
    submit(queue, max_running=1)
    other = queue.records.create(of("another", owner="bob"), 10).job.id
    [running] = hold(queue)
    wishes = Wishes([MODEL, "another"], resident=[MODEL])
    assert [one.job_id for one in queue.leases.claim("two", wishes)] == [other]
    assert queue.leases.claim("two", wishes) == []
    end(queue, running)
    assert len(queue.leases.claim("two", wishes)) == 1


def test_a_worker_that_asks_again_costs_little_where_thousands_wait_for_their_own_key(queue: Queue) -> None:
    client = queue.records.client
    for _ in range(130):
        submit(queue, "alice", max_running=1)
    [running] = hold(queue)
    assert hold(queue) == []
    before = client.info("commandstats")["cmdstat_zrange"]["calls"]
    assert [hold(queue) for _ in range(10)] == [[]] * 10
    assert client.info("commandstats")["cmdstat_zrange"]["calls"] == before
    other = submit(queue, "bob")
    assert [one.job_id for one in hold(queue)] == [other]
    assert hold(queue) == []
    end(queue, running)
    assert len(hold(queue)) == 1


def test_a_shared_call_takes_no_more_of_a_keys_jobs_than_may_run(queue: Queue) -> None:
    mine = [submit(queue, "alice", batch_key="k", max_running=2) for _ in range(4)]
    others = [submit(queue, "bob", batch_key="k") for _ in range(2)]
    assert [one.job_id for one in hold(queue, 5)] == [mine[0], others[0], mine[1], others[1]]
    assert hold(queue, 5) == []


@pytest.mark.parametrize("how", ["release", "reap", "cancel"])
def test_a_job_that_does_not_run_any_more_makes_room_whatever_ended_it(queue: Queue, how: str) -> None:
    jobs = [submit(queue, max_running=1) for _ in range(2)]
    [first] = hold(queue)
    assert hold(queue) == []
    if how == "release":
        assert queue.records.release(first.job_id, first.fence, counted=True)
    elif how == "cancel":
        assert queue.cancel(first.job_id) == "cancelled"
    else:
        run_out(queue.records.client, first.job_id)
        assert reap(queue.leases) == {first.job_id: "queued"}
    assert [one.job_id for one in hold(queue)] == [jobs[1] if how == "cancel" else jobs[0]]
    assert hold(queue) == []


def test_one_that_was_handed_back_holds_nobody_up_either(queue: Queue) -> None:
    """It waits before all others, where no line has its places."""
    back, other = submit(queue, "alice", max_running=1), submit(queue, "alice", max_running=1)
    [first] = hold(queue)
    assert queue.records.release(first.job_id, first.fence, counted=False)
    [again] = hold(queue)
    assert again.job_id == back
    run_out(queue.records.client, back)
    reap(queue.leases)
    [second] = hold(queue)
    assert second.job_id == back
    bobs = submit(queue, "bob")
    assert [one.job_id for one in hold(queue)] == [bobs]
    end(queue, second)
    assert [one.job_id for one in hold(queue)] == [other]


def test_a_line_gets_no_credit_for_having_waited_for_its_own_jobs(queue: Queue) -> None:
    """When it may run again, its next job is first, and the others are where one stands that comes back."""
    for _ in range(10):
        submit(queue, "alice", max_running=1)
    [running] = hold(queue)
    for _ in range(40):
        submit(queue, "bob")
    for _ in range(20):
        end(queue, *hold(queue))
    end(queue, running)
    assert owners(queue, [serve(queue)[0] for _ in range(8)]) == "aabababa"


def test_a_line_that_had_to_wait_keeps_the_order_of_its_jobs(queue: Queue) -> None:
    mine = [submit(queue, "alice", max_running=1) for _ in range(3)]
    [running] = hold(queue)
    for _ in range(20):
        submit(queue, "bob")
    for _ in range(10):
        end(queue, *hold(queue))
    end(queue, running)
    assert serve(queue) == [mine[1]]
    last = submit(queue, "alice", max_running=1)
    assert [job for job in order(queue.records.client) if job in (*mine, last)] == [mine[2], last]
    assert owners(queue, order(queue.records.client)[:4]) == "abab"


def test_two_keys_of_an_owner_have_lines_and_numbers_of_their_own(queue: Queue) -> None:
    for _ in range(3):
        submit(queue, "alice", max_running=1, account="prk_one")
    other = submit(queue, "alice", max_running=1, account="prk_two")
    assert [one.job_id for one in (*hold(queue), *hold(queue))][1] == other
    assert hold(queue) == []


@FEW
@given(
    most=st.fixed_dictionaries({"a": st.integers(1, 2), "b": st.integers(1, 3), "c": st.none()}),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from("abc"), st.sampled_from(LANES), st.sampled_from(["", "k"])),
            st.tuples(st.just("claim"), st.integers(1, 4)),
            st.tuples(st.sampled_from(["finish", "cancel"]), st.integers(0, 30)),
        ),
        min_size=10,
        max_size=50,
    ),
)
def test_redis_passes_over_whom_fair_order_passes_over(
    queue: Queue, most: dict[str, int | None], steps: list[tuple[object, ...]]
) -> None:
    queue.records.client.flushall()
    fair = FairOrder()
    owner_of: dict[str, str] = {}
    held: list[Claim] = []
    for action, *values in steps:
        if action == "add":
            owner, lane, key = values
            job_id = submit(queue, owner, lane, key, most[owner])
            owner_of[job_id] = owner
            fair.add(job_id, Flow(owner, lane), key)
        elif action == "claim":
            running = [owner_of[one.job_id] for one in held]
            room = {owner: limit - running.count(owner) for owner, limit in most.items() if limit}
            claims = hold(queue, *values)
            assert [one.job_id for one in claims] == fair.claim(*values, room=room)
            held += claims
            running = [owner_of[one.job_id] for one in held]
            assert all(running.count(owner) <= limit for owner, limit in most.items() if limit)
        elif action == "finish" and held:
            end(queue, held.pop(values[0] % len(held)))
        elif action == "cancel" and len(fair):
            job_id = fair.order()[values[0] % len(fair)].job_id
            queue.cancel(job_id)
            fair.remove(job_id)
        assert order(queue.records.client) == [ticket.job_id for ticket in fair.order()]
    assert_all_adds_up(queue.records.client)


@FEW
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from("abc"), st.sampled_from(["", "k"])),
            st.tuples(st.just("claim"), st.integers(1, 4)),
            st.tuples(st.sampled_from(["finish", "reap", "release", "retake", "cancel"]), st.integers(0, 30)),
        ),
        min_size=10,
        max_size=50,
    )
)
def test_first_come_first_served_within_a_line_whatever_is_handed_back(
    queue: Queue, steps: list[tuple[object, ...]]
) -> None:
    """What was handed back comes before the rest, since it was begun: one that shared another's call too, though it
    passed older ones of its line by that. Also when the order began anew meanwhile; and no two jobs have one place.
    """
    client = queue.records.client
    client.flushall()
    came: dict[str, list[str]] = {}
    begun: set[str] = set()
    held = []
    for action, *values in steps:
        if action == "add":
            came.setdefault(values[0], []).append(submit(queue, values[0], batch_key=values[1]))
        elif action == "claim":
            held += claim(queue, batches={MODEL: [(10**9, values[0])]})
            begun |= {one.job_id for one in held}
        elif action == "cancel":
            waiting = order(client)
            if waiting:
                queue.cancel(waiting[values[0] % len(waiting)])
        elif held:
            one = held.pop(values[0] % len(held))
            if action == "finish":
                assert queue.records.advance(one.job_id, one.fence, JobStatus.SUCCEEDED)
            elif action == "release":
                assert queue.records.release(one.job_id, one.fence, counted=False)
            else:
                run_out(client, one.job_id)
                if reap(queue.leases)[one.job_id] == "queued" and action == "retake":
                    assert queue.leases.renew("one", [one]) == ["ok"]
                    held.append(one)
        scores = [score for _, score in client.zrange(f"polyreel:ready:{MODEL}", 0, -1, withscores=True)]
        assert len(set(scores)) == len(scores)
        for jobs in came.values():
            came_at = {job: n for n, job in enumerate(jobs)}
            waiting = [job for job in order(client) if job in jobs]
            assert waiting == sorted(waiting, key=lambda job, at=came_at: (job not in begun, at[job]))
    assert_all_adds_up(client)


@FEW
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from("ab"), st.integers(1, 6), st.sampled_from(["", "k"])),
            st.tuples(st.just("claim"), st.integers(1, 4)),
            st.tuples(st.just("cancel"), st.integers(0, 30)),
        ),
        max_size=40,
    )
)
def test_a_head_is_claimed_within_two_claims_however_many_jobs_another_key_has(
    queue: Queue, steps: list[tuple[object, ...]]
) -> None:
    """Whenever it comes, whatever was served of its line before, whatever shares calls and whatever is cancelled."""
    queue.records.client.flushall()
    waiting: dict[str, list[str]] = {"a": [], "b": []}
    passed = {"a": 0, "b": 0}
    for action, *values in steps:
        if action == "add":
            owner, number, key = values
            waiting[owner] += [submit(queue, owner, batch_key=key) for _ in range(number)]
        elif action == "claim":
            claimed = serve(queue, *values)
            for owner, jobs in waiting.items():
                passed[owner] = passed[owner] + 1 if jobs and jobs[0] not in claimed else 0
                assert passed[owner] < 2
                waiting[owner] = [job for job in jobs if job not in claimed]
        elif jobs := [job for line in waiting.values() for job in line]:
            job = jobs[values[0] % len(jobs)]
            queue.cancel(job)
            for line in waiting.values():
                if job in line:
                    line.remove(job)


MODELS = ("a", "b", "c", "d")


@FEW
@given(
    waited=st.dictionaries(st.sampled_from(MODELS), st.sampled_from([0, 10, 40, 50, 301, 302, 500, 700, 5000])),
    resident=st.sets(st.sampled_from(MODELS)),
    warm=st.sets(st.sampled_from(MODELS)),
    held_s=st.sampled_from([0.0, 99.0, 250.0, 700.0, 10**6]),
    swap_s=st.dictionaries(st.sampled_from(MODELS), st.sampled_from([0.5, 12.0, 30.0, 200.0])),
    rule=st.sampled_from([Rule(), Rule(2.0, 45.0, 0.5, 3.0)]),
)
def test_redis_chooses_as_choose_does(
    queue: Queue,
    waited: dict[str, int],
    resident: set[str],
    warm: set[str],
    held_s: float,
    swap_s: dict[str, float],
    rule: Rule,
) -> None:
    client = queue.records.client
    client.flushall()
    leases = Leases(client, retention_s=60, rule=rule)
    now = redis_time(client)
    jobs = {}
    for model, waited_s in waited.items():
        jobs[model] = queue.records.create(of(model), 1000).job.id
        # half a second more: between this and the claim no limit is passed
        client.hset(f"polyreel:job:{jobs[model]}", "created_at", now - waited_s - 0.5)
    leases.beat("peer", {"loaded": sorted(warm)})
    leases.beat("one", {"loaded": sorted(resident)})
    expected = choose(
        [Waiting(model, waited_s + 0.5) for model, waited_s in waited.items()],
        frozenset(resident),
        held_s,
        swap_s,
        frozenset(warm),
        rule,
    )
    wishes = Wishes(models=MODELS, resident=sorted(resident), held_s=held_s, swap_s=swap_s)
    claimed = [one.job_id for one in leases.claim("one", wishes)]
    assert claimed == ([] if expected is None else [jobs[expected]])


def test_what_a_peer_that_died_had_in_memory_keeps_nobody_waiting(queue: Queue) -> None:
    client = queue.records.client
    queue.leases.beat("peer", {"loaded": [MODEL]})
    over = {"until": redis_time(client) - 1, "models": [MODEL]}
    client.hset("polyreel:residents", "peer", json.dumps(over))
    job = submit(queue)
    assert [one.job_id for one in claim(queue)] == [job]
    assert client.hgetall("polyreel:residents") == {}, "nor is it remembered for ever"


def test_a_worker_takes_only_models_that_it_serves(queue: Queue) -> None:
    assert queue.records.create(of("another"), 10).claimable
    assert claim(queue) == []
    assert queue.leases.claim("one", Wishes([])) == []


def test_a_default_loading_time_is_taken_until_one_was_measured(queue: Queue) -> None:
    queue.leases.learn_swap("a", 10.0)
    queue.leases.learn_swap("a", 20.0)
    assert queue.leases.swap_seconds() == {"a": 13.0}
    assert DEFAULT_SWAP_S == 30.0


def test_the_number_of_jobs_in_a_call_follows_the_measured_sizes(queue: Queue) -> None:
    """A job of 9 x 64 x 96 = 55296 pixels."""
    for sizes, expected in [
        ([], 1),
        ([(55295, 4)], 1),
        ([(55296, 2), (10**6, 4)], 2),
        ([(1000, 8), (55297, 3), (10**6, 4)], 3),
        ([(1000, 8), (60000, 1), (10**6, 4)], 1),
    ]:
        for _ in range(5):
            submit(queue, batch_key="k")
        assert len(claim(queue, batches={MODEL: sizes})) == expected
        queue.records.client.flushall()


def test_a_job_with_another_key_or_none_shares_with_nobody(queue: Queue) -> None:
    for key in ("", "", "k", "l"):
        submit(queue, batch_key=key)
    assert [len(serve(queue, 4)) for _ in range(5)] == [1, 1, 1, 1, 0]


def test_a_job_that_was_tried_before_runs_alone(queue: Queue) -> None:
    """It may be what took its worker down."""
    tried, *_ = (submit(queue, batch_key="k") for _ in range(4))
    [taken] = claim(queue)
    assert queue.records.release(tried, taken.fence, counted=True)
    assert serve(queue, 4) == [tried]
    assert len(serve(queue, 4)) == 3


def test_what_is_gone_or_ended_or_somebodys_is_passed_over(queue: Queue) -> None:
    client = queue.records.client
    gone, ended, theirs, garbled, good = (submit(queue) for _ in range(5))
    client.delete(f"polyreel:job:{gone}")
    client.hset(f"polyreel:job:{ended}", "status", "succeeded")
    client.hset(f"polyreel:job:{theirs}", "claimable", 0)
    client.hdel(f"polyreel:job:{garbled}", "created_at")
    assert [one.job_id for _ in range(2) for one in claim(queue)] == [garbled, good]
    assert order(client) == []
    assert client.lrange(f"rq:queue:{MODEL}", 0, -1) == []


def test_a_newer_versions_job_is_left_alone(queue: Queue) -> None:
    client = queue.records.client
    newer, mine = submit(queue, batch_key="k"), submit(queue, batch_key="k")
    client.hset(f"polyreel:job:{newer}", mapping={"schema": SCHEMA + 1, "status": "dreaming"})
    assert serve(queue, 4) == [mine]
    assert claim(queue) == []
    assert queue.leases.repair() == {}
    assert order(client) == [newer]
