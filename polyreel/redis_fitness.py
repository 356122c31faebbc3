"""Whether the Redis that the settings name can be used at all, and in which words it is told when it cannot.

One that is away is waited for, since it may be starting; one that wants another password, or is too old, will want it
tomorrow too, so that a start says so and ends.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import redis

from polyreel.errors import ConfigurationError
from polyreel.records import connect

#: Oldest Redis whose scripts have flags, as `polyreel.scripts` needs; a Valkey says 7.2 or newer.
OLDEST = (7, 0)


def address_of(url: str) -> str:
    """Return where a Redis is, without user and password."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def check_redis(url: str) -> None:
    """Raise `ConfigurationError` for a Redis that no waiting makes fit; return where it is fit, or away."""
    try:
        with connect(url, patient=False) as client:
            found = str(client.info("server")["redis_version"])
    except redis.RedisError as err:
        if is_for_good(err):
            raise unusable(url, err) from None
        return
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise ConfigurationError(
            f"redis_url: the Redis at {address_of(url)} is {found}. Use Redis 7 or newer, or Valkey; `polyreel up` "
            "without REDIS_URL has one."
        )


def is_for_good(err: BaseException) -> bool:
    """Return whether Redis will say the same tomorrow: it wants another password, or has no such database.

    A command that its access lists forbid is not among these: the others may be all that is needed.
    """
    return isinstance(err, redis.AuthenticationError) or str(err).startswith(
        ("WRONGPASS", "NOAUTH", "HELLO must be called", "DB index is out of range", "invalid DB index")
    )


def unusable(url: str, err: BaseException) -> ConfigurationError:
    """Return what is told of a Redis that cannot be used; never its password."""
    return ConfigurationError(" ".join(trouble_of(url, err)))


def trouble_of(url: str, err: BaseException) -> tuple[str, str]:
    """Return what is wrong with a Redis that cannot be used, and what to do about it."""
    words = " ".join(str(err).split()).rstrip(".") or type(err).__name__
    if "DB index" in words:
        fix = "Set REDIS_URL to a database that it has, as in redis://HOST:6379/0."
    elif is_for_good(err):
        words = "it wants another password, or another user"
        fix = (
            "Set REDIS_URL=redis://USER:PASSWORD@HOST:6379/0 with the right ones (USER may be empty; what is set is a "
            "secret and not shown)."
        )
    else:
        fix = "Start it, or set REDIS_URL=redis://HOST:6379/0 to one that answers; without it the embedded one is used."
    return f"redis_url: the Redis at {address_of(url)} cannot be used: {words}.", fix
