"""What the workers that live now say of themselves: the models that they serve, and their devices."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

import redis.asyncio

from polyreel.records import RESIDENTS, WORKER_PREFIX
from server.gate import Gate

#: For how long a submit believes what the workers last said of their devices, seconds: asking all of them takes two
#: calls to Redis, and a device does not change while a worker lives.
BELIEVED_S = 5.0


@dataclass
class LiveWorkers:
    """Asks for the heartbeats of all workers.

    Args:
        reader: asynchronous client for polls.
        gate: what every call to Redis passes.
        read_at: when `largest_device` asked last, by our clock.
    """

    reader: redis.asyncio.Redis
    gate: Gate
    read_at: float = -BELIEVED_S
    _said: list[dict[str, object]] = field(default_factory=list)

    async def said(self) -> list[dict[str, object]]:
        """Return what each live worker says, with its `name`.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        async with self.gate.asking():
            names = await self.reader.hkeys(RESIDENTS)
            said = await self.reader.mget([WORKER_PREFIX + str(name) for name in names]) if names else []
        return [{"name": str(name), **json.loads(text)} for name, text in zip(names, said, strict=True) if text]

    async def largest_device(self, model: str) -> int | None:
        """Return the memory of the largest device that serves a model now, bytes; None when no limit is known.

        None is also when nobody serves it, which a worker that is still starting may change, and when one who does
        names no limit (a CPU). What it goes by is a few seconds old at most.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        now = time.monotonic()
        if now - self.read_at > BELIEVED_S:
            self.read_at, self._said = now, await self.said()
        sizes = [said.get("memory_bytes") for said in self._said if model in listed(said.get("models"))]
        known = [size for size in sizes if isinstance(size, int)]
        return max(known) if known and len(known) == len(sizes) else None


def listed(value: object) -> list[object]:
    """Return what a heartbeat lists in a field, [] where it has none."""
    return value if isinstance(value, list) else []
