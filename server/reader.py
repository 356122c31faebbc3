"""The asynchronous client by which the API reads Redis; what it writes goes through `polyreel.queue`, in threads."""

from __future__ import annotations

import redis.asyncio
from redis.driver_info import DriverInfo

import polyreel
from polyreel.records import BRIEF_TIMEOUTS, brief_retry

#: Connections of one process for polls. Each is busy for the time of one command.
_CONNECTIONS = 50


def connect_reader(url: str) -> redis.asyncio.Redis:
    """Return the client for polls."""
    # Made here, once: left to itself, redis-py looks its version up on disk for each connection, in a route.
    driver = DriverInfo().add_upstream_driver("polyreel", polyreel.__version__)
    # One that waits for a free connection: the plain pool raises at the 101st request that asks at the same time.
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=None,  # the gate's budget bounds it
        decode_responses=True,
        retry=_retry(),
        driver_info=driver,
        **BRIEF_TIMEOUTS,
    )
    return redis.asyncio.Redis.from_pool(pool)


def _retry() -> redis.asyncio.retry.Retry:
    brief = brief_retry()
    return redis.asyncio.retry.Retry(brief._backoff, 1)
