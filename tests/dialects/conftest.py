"""Closes what each test's APIs opened, on the loop that opened it: a forgotten connection is a warning, so an error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from tests.conftest import Api


@pytest.fixture
async def make_api(make_api: Callable[..., Api], anyio_backend: str) -> AsyncIterator[Callable[..., Api]]:
    """As the outer factory."""
    made: list[Api] = []

    def make(**changes: object) -> Api:
        made.append(make_api(**changes))
        return made[-1]

    yield make
    for api in made:
        await api.http._transport.app.state.services.reader.aclose()  # type: ignore[attr-defined]
        await api.http.aclose()
