"""A call to Redis ends when its time is up, whatever it makes of being told so."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from polyreel.errors import QueueUnavailable
from server import gate
from server.gate import Gate

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BUDGET_S", 0.05)


async def test_a_call_that_swallows_its_cancellation_is_ended_all_the_same() -> None:
    swallowed = 0

    async def ask() -> None:
        nonlocal swallowed
        async with Gate().asking():
            for _ in range(2):
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    swallowed += 1
            await asyncio.sleep(60)

    with pytest.raises(QueueUnavailable):
        await ask()
    assert swallowed == 2
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0.2)  # nothing strikes afterwards


async def test_a_call_that_ends_in_time_is_left_alone() -> None:
    async with Gate().asking():
        await asyncio.sleep(0)
    await asyncio.sleep(0.2)


async def test_a_client_that_leaves_while_redis_hangs_is_cancelled_and_not_answered() -> None:
    async def ask() -> None:
        async with Gate().asking():
            await asyncio.sleep(60)

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    assert asking.cancelled()
