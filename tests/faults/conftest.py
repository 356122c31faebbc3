"""One server for all tests of this folder; what one test has killed is started again for the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.stand import Stand


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    stand = Stand(tmp_path_factory.mktemp("faults") / "stand", batch=4, POLYREEL_DRAIN_S="60")
    yield stand
    stand.close()


@pytest.fixture
def stand(_shared: Stand) -> Stand:
    """A server with two API processes and two workers, of which one each serves already."""
    _shared.start_some()
    return _shared


@pytest.fixture
def whole(_shared: Stand) -> Stand:
    """The same with all of it at work."""
    _shared.start()
    return _shared
