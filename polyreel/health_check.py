"""`python -m polyreel.health_check serve|worker|courier`: is the process of this container at work? Exit 0, else 1.

For a HEALTHCHECK and for probes: an image without curl, and processes that listen on no port. A worker and a courier
say in Redis that they live, under names that begin with their host's, which in a container is its own; an API answers
on its port. One that hangs is not healthy although its process exists: nobody says any longer that it lives
(docs/operations.md).
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis

#: Longest wait for the API, seconds: a HEALTHCHECK's own timeout is longer.
_TIMEOUT_S = 3.0


def serve() -> str:
    """Return what ails the API of this host, "" for nothing."""
    port = os.environ.get("POLYREEL_PORT") or "8000"
    # Kubernetes sets POLYREEL_PORT=tcp://… for a Service called polyreel, which is no setting.
    connection = http.client.HTTPConnection("127.0.0.1", int(port) if port.isdecimal() else 8000, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except OSError as err:
        return f"the API does not answer on port {connection.port}: {err}"
    finally:
        connection.close()
    return "" if status == 200 else f"the API answers /health with {status}"


def worker() -> str:
    """Return what ails the workers of this host, "" if one of them at least lives."""
    from polyreel.records import RESIDENTS, WORKER_PREFIX

    def alive(client: redis.Redis) -> bool:
        names = _of_this_host([str(name) for name in client.hkeys(RESIDENTS)])
        return bool(names) and bool(client.exists(*(WORKER_PREFIX + name for name in names)))

    return _seen("worker", alive)


def courier() -> str:
    """Return what ails the courier of this host, "" for nothing."""
    from polyreel.webhooks import COURIER_TTL_S, COURIERS

    def alive(client: redis.Redis) -> bool:
        seconds, _ = client.time()
        seen = client.zrangebyscore(COURIERS, int(seconds) - COURIER_TTL_S, "+inf")
        return bool(_of_this_host([str(name) for name in seen]))

    return _seen("courier", alive)


def _seen(process: str, alive: Callable[[redis.Redis], bool]) -> str:
    from redis import RedisError

    from polyreel.profiles import load_settings
    from polyreel.records import connect

    url = load_settings().settings.redis_url
    if url is None:
        return f"a {process} needs REDIS_URL"
    with connect(url.get_secret_value(), patient=False) as client:
        try:
            return "" if alive(client) else f"no {process} of {socket.gethostname()} says in Redis that it lives"
        except RedisError as err:
            return f"Redis does not answer: {type(err).__name__}"


def _of_this_host(names: list[str]) -> list[str]:
    """Return the names that begin with this host's: {host}-{process or slot}-{8 hex digits}."""
    return [name for name in names if name.startswith(f"{socket.gethostname()}-")]


CHECKS: dict[str, Callable[[], str]] = {"serve": serve, "worker": worker, "courier": courier}


def main(argv: list[str]) -> int:
    """Check one process; return 0 if it is well, 1 with a line on stderr if not, 2 for a wrong call."""
    if len(argv) != 1 or argv[0] not in CHECKS:
        print(f"usage: python -m polyreel.health_check {'|'.join(CHECKS)}", file=sys.stderr)  # noqa: T201
        return 2
    trouble = CHECKS[argv[0]]()
    if trouble:
        print(trouble, file=sys.stderr)  # noqa: T201
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
