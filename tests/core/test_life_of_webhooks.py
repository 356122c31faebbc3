"""A state machine over all that can happen to webhooks."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from polyreel.broker import EmbeddedBroker
from polyreel.errors import UnknownJob
from polyreel.queue import Queue
from polyreel.webhooks import PER_RECEIVER, Attempt, Hands, Taken
from tests.core.jobs import open_queue, queued, redis_time

TRIES = 3
RECEIVERS = ("a.example", "b.example:8443")


def life_of_webhooks(queue: Queue) -> type[RuleBasedStateMachine]:
    client, webhooks = queue.records.client, queue.webhooks
    webhooks.tries = TRIES

    class LifeOfWebhooks(RuleBasedStateMachine):
        """Whatever jobs, couriers and owners do, in whatever order:

        the webhook of a job that has ended is in exactly one of its receiver's line, the leases, and what is over
        (delivered or given up); what was delivered is never taken again unless somebody asks for it; nobody has more
        than two of one receiver; each receiver's place is that of the first of its line; and none is left without one.
        """

        def __init__(self) -> None:
            super().__init__()
            client.flushall()
            #: Receiver of every job that has ended, and those whose webhook was delivered.
            self.receivers: dict[str, str] = {}
            self.delivered: set[str] = set()
            #: What couriers believe that they have, also those whose lease has run out.
            self.taken: list[Taken] = []
            self.deleted: set[str] = set()
            for receiver in (*RECEIVERS, *RECEIVERS):
                self.a_job_ends(receiver)

        @rule(receiver=st.sampled_from(RECEIVERS))
        def a_job_ends(self, receiver: str) -> None:
            # Ids in order: Redis sorts by them what is due at the same moment, and Hypothesis wants the same again.
            job_id = f"{len(self.receivers):08d}-0000-4000-8000-000000000000"
            queue.records.create(queued(id=job_id, webhook=f"https://{receiver}/x"), max_open=1000)
            queue.cancel(job_id)
            self.receivers[job_id] = receiver

        @rule(free=st.sampled_from([0, 1, 9]), unproven=st.sampled_from([1, 9]))
        def somebody_comes_for_work(self, free: int, unproven: int) -> None:
            found = webhooks.take("courier", Hands(free, unproven))
            assert len(found) <= free
            assert sum(not taken.is_proven for taken in found) <= unproven
            for taken in found:
                assert taken.job_id not in self.delivered | self.deleted
                assert taken.receiver == self.receivers[taken.job_id]
                assert taken.attempt_of_round <= TRIES
            self.taken += found

        @precondition(lambda self: self.taken)
        @rule(
            n=st.integers(0, 99),
            outcome=st.sampled_from(["delivered", "failed", "retry"]),
            after_s=st.sampled_from([0, 60]),
        )
        def an_attempt_ends(self, n: int, outcome: str, after_s: float) -> None:
            taken = self.taken.pop(n % len(self.taken))
            state = webhooks.note(taken, Attempt(taken.attempt, 200, "", 1), outcome, after_s)
            if outcome == "delivered" and taken.job_id not in self.deleted:
                assert state == "delivered"
                self.delivered.add(taken.job_id)

        @rule()
        def time_passes(self) -> None:
            """Leases run out, and what is to be tried again is due."""
            now = redis_time(client) - 1
            for key in ["polyreel:webhooks:leases", "polyreel:webhooks", *client.scan_iter("polyreel:webhooks:line:*")]:
                if members := client.zrange(key, 0, -1):
                    client.zadd(key, dict.fromkeys(members, now))

        @precondition(lambda self: self.receivers)
        @rule(n=st.integers(0, 99))
        def an_owner_asks_again(self, n: int) -> None:
            job_id = list(self.receivers)[n % len(self.receivers)]
            try:
                webhooks.redeliver(job_id)
            except UnknownJob:
                assert job_id in self.deleted
            else:
                assert job_id not in self.deleted
                self.delivered.discard(job_id)

        @precondition(lambda self: self.receivers)
        @rule(n=st.integers(0, 99))
        def an_owner_deletes_a_job(self, n: int) -> None:
            job_id = list(self.receivers)[n % len(self.receivers)]
            assert queue.delete(job_id)
            self.deleted.add(job_id)

        @invariant()
        def everything_agrees(self) -> None:
            jobs = list(self.receivers)
            with client.pipeline(transaction=True) as pipeline:
                for receiver in RECEIVERS:
                    pipeline.zrange(f"polyreel:webhooks:line:{receiver}", 0, -1, withscores=True)
                pipeline.zrange("polyreel:webhooks", 0, -1, withscores=True)
                pipeline.zrange("polyreel:webhooks:leases", 0, -1)
                for job_id in jobs:
                    pipeline.hget(f"polyreel:webhook:{job_id}", "state")
                a, b, firsts, leases, *states = pipeline.execute()
            lines = {receiver: line for receiver, line in zip(RECEIVERS, (a, b), strict=True) if line}
            assert dict(firsts) == {receiver: line[0][1] for receiver, line in lines.items()}
            held = [member.split(" ") for member in leases]
            assert all(sum(receiver == other for _, other in held) <= PER_RECEIVER for receiver in RECEIVERS)
            over = {job_id for job_id, state in zip(jobs, states, strict=True) if state in ("delivered", "failed")}
            # An older attempt may have brought what a newer one is still at.
            under_way = [job_id for job_id, _ in held if job_id not in over]
            waiting = [job_id for line in lines.values() for job_id, _ in line]
            assert sorted(waiting + under_way) == sorted(set(jobs) - over - self.deleted)
            assert self.delivered - self.deleted <= over

    return LifeOfWebhooks


def test_the_life_of_webhooks(broker: EmbeddedBroker) -> None:
    queue = open_queue(broker.url)
    run_state_machine_as_test(
        life_of_webhooks(queue),
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    queue.records.client.close()
