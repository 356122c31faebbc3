"""Whether somebody delivers webhooks, and how late they are; what operators are told by `/ready` and `/metrics`."""

from __future__ import annotations

from dataclasses import dataclass

from polyreel.webhooks import COURIER_TTL_S, COURIERS, RECEIVERS
from server.services import Services

#: A courier that has just been started or is starting again is not missed before this, seconds.
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Couriers:
    """What Redis says.

    Args:
        alive: couriers that came for work lately.
        late_s: for how long the webhook that is most overdue has been due, 0.0 for none.
    """

    alive: int
    late_s: float

    @property
    def warning(self) -> str:
        """A sentence for the operator, "" when all is well."""
        if self.alive or self.late_s < _PATIENCE_S:
            return ""
        return (
            f"Webhooks have been due for {self.late_s:.0f} s and no courier delivers them: "
            "polyreel courier, or polyreel up."
        )


async def couriers(shared: Services) -> Couriers:
    """Return how the couriers are getting on.

    Raises:
        QueueUnavailable: Redis does not answer.
    """
    async with shared.gate.asking(), shared.reader.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.zrange(COURIERS, 0, -1, withscores=True)
        pipeline.zrange(RECEIVERS, 0, 0, withscores=True)
        (seconds, microseconds), seen, first = await pipeline.execute()
    now = int(seconds) + int(microseconds) / 1e6
    alive = sum(now - float(at) < COURIER_TTL_S for _, at in seen)
    return Couriers(alive, max(0.0, now - float(first[0][1])) if first else 0.0)
