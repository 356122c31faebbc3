"""The Redis of a command: the one that REDIS_URL names, else the embedded queue of the state folder.

Of the `polyreel up` that runs there, or started for the moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from pydantic import SecretStr

from polyreel.broker import queue_of
from polyreel.errors import ConfigurationError, QueueUnavailable
from polyreel.records import connect
from polyreel.redis_fitness import unusable
from polyreel.settings import Settings


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[redis.Redis, Settings]]:
    """Give a client, and the settings with the URL that it uses.

    Raises:
        ConfigurationError: there is no queue, or it does not answer.
    """
    try:
        if settings.redis_url is not None:
            url = settings.redis_url.get_secret_value()
            with connect(url, patient=False) as client:
                try:
                    client.ping()
                except redis.RedisError as err:
                    raise unusable(url, err) from err
                yield client, settings
        else:
            with queue_of(settings.state_dir) as url, connect(url, patient=False) as client:
                yield client, settings.model_copy(update={"redis_url": SecretStr(url)})
    except QueueUnavailable as err:
        raise ConfigurationError(f"redis_url: {err}") from err
