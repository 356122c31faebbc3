"""Many requests that ask at once what is free share one look, and each has an answer."""

from __future__ import annotations

import anyio
import pytest

from server.storage_watch import _Remembered

pytestmark = pytest.mark.anyio


async def test_requests_that_ask_in_the_moment_of_an_answer_have_one() -> None:
    remembered, answers = _Remembered(lambda: 7), []

    async def ask() -> None:
        for _ in range(40):
            answers.append(await remembered.value(0.0, 30.0))

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(ask)
    assert answers == [7] * 320
