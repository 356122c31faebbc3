"""How a job is to be taken in and run, beside what it is to make: wishes about the queue, not about the video."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal, get_args

from polyreel.limits import KeyLimits

#: Jobs of one owner form one line per lane. Lanes share a model by weight: nobody starves, and a single interactive job
#: does not wait for its owner's own thousand of bulk.
Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = get_args(Lane)

#: Shares of a model's time while both lanes of an owner have work.
WEIGHTS: dict[str, float] = {"interactive": 4.0, "bulk": 1.0}

#: How long an Idempotency-Key is remembered, seconds.
IDEMPOTENCY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client asked of the queue, and what its key may.

    Args:
        lane: see `Lane`.
        exact: never share a pipeline call, so that the same request gives the same bytes again; in a shared call a
            sample may differ from its single run by one grey level.
        idempotency_key: the client's own word for this submit, "" for none: the same again is answered with the same
            job, for 24 hours.
        digest: of the request as it came, to tell a repetition from another request under the same key.
        limits: of the API key, which hold for its account.
        expected_s: seconds of a device that the job is expected to take, 0.0 for unknown.
        ends: "succeeded" or "failed" for a rehearsal, which ends as it is taken in and is never run; else "".
    """

    lane: Lane = "interactive"
    exact: bool = False
    idempotency_key: str = ""
    digest: str = ""
    limits: KeyLimits = field(default_factory=KeyLimits)
    expected_s: float = 0.0
    ends: str = ""

    def redis_key(self, owner: str) -> str:
        """Return where the key is remembered, "" for none; an owner's keys are its own."""
        if not self.idempotency_key:
            return ""
        named = f"{owner}\n{self.idempotency_key}".encode("utf-8", "surrogatepass")
        return f"polyreel:idempotency:{hashlib.sha256(named).hexdigest()}"
