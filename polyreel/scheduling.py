"""Which model a worker serves next, and in which order the jobs of one model are served.

Pure functions over plain values: `choose` is the rule between models, `FairOrder` the order within one. The claim
(`polyreel/lua`) does the same inside Redis, and a test compares the two. docs/scheduling.md explains both to operators
and holds the simulation that their numbers come from.

Source: start-time fair queuing is Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from polyreel.terms import WEIGHTS, Lane

#: Seconds that loading a model is taken to last until it was measured.
DEFAULT_SWAP_S = 30.0


@dataclass(frozen=True, slots=True)
class Rule:
    """The numbers of the rule between models; those called swaps are multiples of a model's own loading time.

    Args:
        quantum_swaps: how long a worker that loaded a model serves what it has in memory, before it loads another one
            while there is work for these. Loading then takes at most 1 / (1 + quantum_swaps) of its time.
        max_wait_s: how long a job waits before its model may end such a quantum, seconds.
        grace_swaps: how long a job waits for the peer that has its model in memory, before an idle worker loads it too.
        peer_factor: how many times `max_wait_s` a job waits when a peer has its model in memory.
    """

    quantum_swaps: float = 20.0
    max_wait_s: float = 300.0
    grace_swaps: float = 1.5
    peer_factor: float = 2.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model with work.

    Args:
        model: catalogue name.
        waited_s: seconds since the job at the head of its order was first submitted.
    """

    model: str
    waited_s: float


def choose(
    waiting: Iterable[Waiting],
    resident: frozenset[str],
    held_s: float,
    swap_s: Mapping[str, float],
    warm_elsewhere: frozenset[str],
    rule: Rule,
) -> str | None:
    """Return the model that a worker serves next, None to leave the rest to others for now.

    1. A model that would have to be loaded is *due* when its head has waited for more than `max_wait_s` (times
       `peer_factor` if a peer has it in memory), and longer than the head of every model in this worker's memory, and
       the worker has kept its models for `quantum_swaps` loading times of that model. A due model goes first.
    2. Then the models in memory: going from one to another costs nothing, so they share one line, the longest waiting
       first. (Staying on one of them was simulated: its longest wait is half as long again, its mean no shorter.)
    3. With nothing for these, a model to load: but one that a peer has in memory is left alone until its head has
       waited for `grace_swaps` of its loading times.

    Among several the longest waiting is taken, and among equals the first by name. Nobody waits for ever: who waits
    longest of all is due once the quantum is over, since heads in memory that are served become younger.

    Args:
        waiting: the models with work that this worker serves, each once.
        resident: models in this worker's memory.
        held_s: seconds since it last *loaded* a model. Going to another model in memory does not start it anew: two
            busy models in memory would otherwise lock out every third for ever.
        swap_s: measured seconds that loading a model takes; `DEFAULT_SWAP_S` where it is missing.
        warm_elsewhere: models that other live workers have in memory.
    """

    def loading_s(one: Waiting) -> float:
        return swap_s.get(one.model, DEFAULT_SWAP_S)

    def is_due(one: Waiting) -> bool:
        patience_s = rule.max_wait_s * (rule.peer_factor if one.model in warm_elsewhere else 1)
        return one.waited_s > patience_s and held_s >= rule.quantum_swaps * loading_s(one)

    def is_free(one: Waiting) -> bool:
        return one.model not in warm_elsewhere or one.waited_s >= rule.grace_swaps * loading_s(one)

    waiting = list(waiting)
    at_hand = _longest(one for one in waiting if one.model in resident)
    others = [one for one in waiting if one.model not in resident]
    due = _longest(one for one in others if is_due(one))
    if due and (at_hand is None or due.waited_s > at_hand.waited_s):
        return due.model
    best = at_hand or _longest(one for one in others if is_free(one))
    return best.model if best else None


def _longest(waiting: Iterable[Waiting]) -> Waiting | None:
    return min(waiting, key=lambda one: (-one.waited_s, one.model), default=None)


@dataclass(frozen=True, slots=True)
class Flow:
    """The jobs that form one line: those of an account in a lane.

    Args:
        owner: the account, which is its owner's name for keys given by the settings.
    """

    owner: str
    lane: Lane = "interactive"


@dataclass(slots=True)
class Ticket:
    """A waiting job.

    Args:
        job_id: of the job.
        flow: its line.
        batch_key: equal keys may share a pipeline call, "" shares with none.
        tag: start tag, the place in the order: smallest first, then the line that came first.
    """

    job_id: str
    flow: Flow
    batch_key: str = ""
    tag: float = 0.0


@dataclass(slots=True)
class _Line:
    number: int
    next_tag: float = 0.0
    tickets: list[Ticket] = field(default_factory=list)


class FairOrder:
    """The waiting jobs of one model: lines take turns, whatever their lengths.

    A job's tag is where its line's previous job ends, but not before the virtual time, which is the tag of the last job
    that was served at the head; a job ends 1 / weight after its tag. So a line that was away gets no credit, one that
    floods only adds to its own end, and `WEIGHTS` says how many turns a lane has against another.

    *Law.* Until the first job of a line starts, each other line starts at most ceil(its weight / this weight) jobs at
    the head. Two lines of one lane: a head starts within the next two claims, however long the other line is.

    Two choices keep the law. A turn costs the same whatever the job: with the estimated seconds as cost, the head of
    long jobs would let many short ones pass, and estimates would have to be right. And what leaves the line otherwise
    (a job that shares another's call, one that is cancelled) leaves no gap: its place goes to the next of its line. For
    the same reason such followers do not move the virtual time, which would put newcomers behind all before them.

    An account may run only so many jobs at a time (`max_running` of its key). Its others wait where they stand and are
    passed over, so that nobody waits for them. When it may again, its next job is first, since its turn has passed; the
    rest of its line then stands as if it had come back that moment, for a line gets no credit for having waited.
    """

    def __init__(self) -> None:
        self._virtual_time = 0.0
        self._lines: dict[Flow, _Line] = {}
        self._waiting: dict[str, Ticket] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job_id: str, flow: Flow, batch_key: str = "") -> None:
        """Put a job at the end of its line; one that waits already stays where it is."""
        if job_id in self._waiting:
            return
        if not self._waiting:  # nobody waits, so nobody is owed anything
            self._virtual_time, self._lines = 0.0, {}
        line = self._lines.setdefault(flow, _Line(len(self._lines)))
        ticket = Ticket(job_id, flow, batch_key, max(self._virtual_time, line.next_tag))
        line.next_tag = ticket.tag + 1 / WEIGHTS[flow.lane]
        line.tickets.append(ticket)
        self._waiting[job_id] = ticket

    def remove(self, job_id: str) -> None:
        """Take out a job that is cancelled, or that shares the call of another; an unknown one is no error."""
        ticket = self._waiting.pop(job_id, None)
        if ticket is None:
            return
        line = self._lines[ticket.flow]
        place, tag = line.tickets.index(ticket), ticket.tag
        del line.tickets[place]
        for later in line.tickets[place:]:
            later.tag, tag = tag, later.tag
        line.next_tag = tag

    def claim(self, limit: int = 1, room: Mapping[str, int] | None = None) -> list[str]:
        """Take the head and up to `limit` - 1 followers of its batch key, in order; [] when nobody waits who may run.

        The head is always taken, so a claim serves whose turn it is, whatever may be batched.

        Args:
            room: account to how many more of its jobs may run; one that is not there has no limit.
        """
        left = dict(room or {})

        def may_run(one: Ticket) -> bool:
            account = one.flow.owner
            if account not in left:
                return True
            left[account] -= 1
            return left[account] >= 0

        order = self.order()
        head = next(filter(may_run, order), None)
        if head is None:
            return []
        line = self._lines[head.flow]
        line.tickets.remove(head)
        del self._waiting[head.job_id]
        if (late := self._virtual_time - head.tag) > 0:
            line.next_tag += late
            for ticket in line.tickets:
                ticket.tag += late
        self._virtual_time = max(self._virtual_time, head.tag)
        alike = (one for one in order if one is not head and head.batch_key and one.batch_key == head.batch_key)
        followers = [one.job_id for one in islice(filter(may_run, alike), limit - 1)]
        for job_id in followers:
            self.remove(job_id)
        return [head.job_id, *followers]

    def order(self) -> Sequence[Ticket]:
        """Return the waiting jobs in the order in which they would be claimed one by one."""
        numbers = {flow: line.number for flow, line in self._lines.items()}
        return sorted(self._waiting.values(), key=lambda one: (one.tag, numbers[one.flow]))
