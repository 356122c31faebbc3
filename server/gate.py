"""The API process's way to Redis: every call passes `Gate.asking`, so that no answer waits longer than is promised.

An answer comes within 3 s whatever Redis does. The sockets' own limits (`polyreel.records.BRIEF_TIMEOUTS`) bound one
command and its retry; a request makes several, and a hundred requests share few threads and connections. So all calls
of one request together have one budget, waiting for a free connection or thread included, and while Redis is known to
be away one call at a time finds out whether it is back; the others are refused at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
import redis
import structlog

from polyreel.errors import QueueUnavailable
from polyreel.records import redis_errors

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

#: Seconds that the calls of one request may take together; what is left of 3 is for everything else.
BUDGET_S = 2.6

#: Seconds between two attempts to end a call that is over its time.
_AGAIN_S = 0.05

#: Threads for the calls that block (submits, cancels); their own, so that files are served while these hang.
_THREADS = 40


@dataclass
class _Budget:
    """What the calls of one request have taken so far, seconds."""

    spent_s: float = 0.0


_budget: ContextVar[_Budget | None] = ContextVar("budget", default=None)


@contextmanager
def budget() -> Iterator[None]:
    """Give what is called inside a budget of its own: a request, or one look of a request that waits for minutes."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


@dataclass
class Gate:
    """Whether Redis answers, as this process sees it; for one event loop."""

    _away_since: float | None = None
    _is_probed: bool = False
    _threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_THREADS))

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Bound calls to Redis by the request's budget, and turn their errors into `QueueUnavailable`.

        Raises:
            QueueUnavailable: Redis refuses, hangs or is full, or did so before in this request.
        """
        spent = _budget.get() or _Budget()
        is_probe = self._away_since is not None
        if spent.spent_s >= BUDGET_S or (is_probe and self._is_probed):
            raise _unavailable()
        self._is_probed = is_probe
        began = time.monotonic()
        try:
            async with _ended_after(BUDGET_S - spent.spent_s):
                with redis_errors():
                    yield
        except TimeoutError as err:
            self._went_away(began, err)
            spent.spent_s = BUDGET_S
            raise _unavailable() from err
        except QueueUnavailable as err:
            if isinstance(err.__cause__, redis.ConnectionError | redis.TimeoutError):  # others are answers of Redis
                self._went_away(began, err.__cause__)
                spent.spent_s = BUDGET_S
            raise
        else:
            self._is_back()
        finally:
            if is_probe:
                self._is_probed = False
            spent.spent_s += time.monotonic() - began

    async def in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call that blocks; `asking` bounds it too, and a thread that hangs longer is left to itself."""
        async with self.asking():
            return await anyio.to_thread.run_sync(
                partial(call, *args, **kwargs), abandon_on_cancel=True, limiter=self._threads
            )

    def _went_away(self, began: float, err: BaseException) -> None:
        if self._away_since is None:
            self._away_since = began
            log.warning("redis does not answer", reason=type(err).__name__)

    def _is_back(self) -> None:
        if self._away_since is not None:
            log.info("redis answers again", away_s=round(time.monotonic() - self._away_since, 1))
            self._away_since = None


@asynccontextmanager
async def _ended_after(seconds: float) -> AsyncIterator[None]:
    """End what is inside when its time is up, as `asyncio.timeout`; again and again until it has ended.

    Once is not enough: about one in five of redis-py's connections that is cancelled while it waits for a server that
    hangs goes on with its next try.

    Raises:
        TimeoutError: the time was up.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None  # noqa: S101 a coroutine runs in a task
    before, strikes = task.cancelling(), 0
    handle: asyncio.TimerHandle

    def strike() -> None:
        nonlocal handle, strikes
        strikes += 1
        task.cancel()
        handle = loop.call_later(_AGAIN_S, strike)

    handle = loop.call_later(seconds, strike)
    try:
        try:
            yield
        finally:
            handle.cancel()
            for _ in range(strikes):
                task.uncancel()
    except asyncio.CancelledError as err:
        if strikes and task.cancelling() <= before:
            raise TimeoutError from err
        raise


def _unavailable() -> QueueUnavailable:
    return QueueUnavailable("The queue does not answer right now. Try again in a few seconds.")
