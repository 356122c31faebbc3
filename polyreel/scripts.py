"""The Lua scripts that change the queue's state, `polyreel/lua/*.lua`: each is one indivisible step.

Every script starts with the same prelude: the order of the states, the names of RQ's keys, and `_SHARED`.
"""

from __future__ import annotations

import base64
import json
import zlib
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.commands.core import Script

from polyreel.job import JobStatus
from polyreel.metrics import METRICS, STAGES, buckets_of

#: RQ's own names, which its tools (`rq info`, registries, dashboards) read. They are internals of RQ, so its version is
#: pinned, and tests/core/test_rq_keys.py asserts each through RQ's own classes.
_RQ = {
    "RQ_QUEUES": "rq:queues",
    "RQ_QUEUE": "rq:queue:",
    "RQ_JOB": "rq:job:",
    "RQ_WIP": "rq:wip:",
    "RQ_EXECUTION": "rq:execution:",
    "RQ_EXECUTIONS": "rq:executions:",
    "RQ_RESULTS": "rq:results:",
    "RQ_WORKER": "rq:worker:",
    "RQ_NOTHING": base64.b64encode(b"null").decode(),  # a result of None, as RQ's JSON serializer writes it
}

#: Our ends in RQ's words: its status, its registry, its kind of result, and how long it is shown, seconds.
_RQ_ENDS = {
    "succeeded": ("finished", "rq:finished:", 1, 3600),
    "failed": ("failed", "rq:failed:", 2, 86400),
    "cancelled": ("canceled", "rq:canceled:", None, 3600),
}

_SHARED = ("accounts", "series", "common")


@cache
def _prelude() -> str:
    ranks = ", ".join(f"{status.value}={status.rank}" for status in JobStatus)
    names = "\n".join(f"local {name} = {json.dumps(value)}" for name, value in _RQ.items())
    ends = ", ".join(
        f"{name}={{status='{status}', registry='{registry}', type={kind or 'nil'}, ttl={ttl}}}"
        for name, (status, registry, kind, ttl) in _RQ_ENDS.items()
    )
    buckets = ", ".join(f"{series}={{{', '.join(map(str, bounds))}}}" for series, bounds in buckets_of(METRICS).items())
    stages = ", ".join(json.dumps(stage) for stage in STAGES)
    names += f"\nlocal BUCKETS, STAGES = {{{buckets}}}, {{{stages}}}"
    shared = "\n".join((files("polyreel") / "lua" / f"{name}.lua").read_text("utf-8") for name in _SHARED)
    return f"local RANK = {{{ranks}}}\n{names}\nlocal RQ_ENDS = {{{ends}}}\n{shared}\n"


def script(client: redis.Redis, name: str) -> Script:
    """Return a script of `polyreel/lua/` as a function of `client`; it names its keys itself, so no Redis Cluster.

    A Redis whose memory is full takes no new job in and goes on with all that it has. The first line says so, which
    needs Redis 7 or Valkey.
    """
    first = "#!lua\n" if name == "submit" else "#!lua flags=allow-oom\n"
    return client.register_script(first + _prelude() + (files("polyreel") / "lua" / f"{name}.lua").read_text("utf-8"))


def exception_text(message: str) -> str:
    """Return a failure's text as RQ's results keep it: deflated, in base64."""
    return base64.b64encode(zlib.compress(message.encode())).decode()


def arguments(terms: dict[str, Any], *more: object) -> list[Any]:
    """Return a script's arguments: JSON first. Any: whatever JSON and redis-py take."""
    return [json.dumps(terms), *more]
