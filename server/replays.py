"""Whether the answer to a request tells of a job that an earlier one with the same Idempotency-Key made.

Every answer that does says `Idempotent-Replayed: true`, in every dialect. Source of the header: Stripe's API.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

HEADER = "Idempotent-Replayed"


@dataclass
class Replay:
    """What is known of one request so far."""

    is_replayed: bool = False


_replay: ContextVar[Replay | None] = ContextVar("replay", default=None)


@contextmanager
def noted() -> Iterator[Replay]:
    """Note what `replayed` says inside, by whatever code of this request."""
    replay = Replay()
    token = _replay.set(replay)
    try:
        yield replay
    finally:
        _replay.reset(token)


def replayed() -> None:
    """Say that this request is answered with an earlier one's job."""
    replay = _replay.get()
    if replay is not None:
        replay.is_replayed = True
