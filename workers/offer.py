"""Of which models a worker takes jobs: those that load here, and those that load nowhere, whose jobs must end too."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import redis

from polyreel.records import RESIDENTS, WORKER_PREFIX

#: Seconds between two looks at what the other workers serve.
_LOOK_S = 2.0


class Offer:
    """What one worker asks the queue for.

    Args:
        client: of Redis.
        worker: name of this worker.
        models: catalogue names of all that the profile serves.
        unavailable: the models that do not load here, with the reason, as they are now.
        after_s: how long nobody else may have served a model that does not load here before its jobs are taken all
            the same, seconds: whoever can load it may just be restarting.
    """

    def __init__(
        self,
        client: redis.Redis,
        worker: str,
        models: Sequence[str],
        unavailable: Callable[[], Mapping[str, str]],
        after_s: float,
    ) -> None:
        self._client = client
        self._worker = worker
        self._models = models
        self._unavailable = unavailable
        self._after_s = after_s
        self._looked_at = -_LOOK_S
        self._unserved_since: dict[str, float] = {}

    def served(self) -> list[str]:
        """Return the models that load here."""
        return [model for model in self._models if model not in self._unavailable()]

    def wanted(self) -> list[str]:
        """Return the models whose jobs this worker takes.

        A job of a model that loads nowhere would wait for ever. Taken by a worker that cannot load it, it fails with
        the reason; or it runs, if the operator has mended the model since.
        """
        broken = [model for model in self._models if model in self._unavailable()]
        self._look(broken)
        now = time.monotonic()
        since = self._unserved_since
        return [*self.served(), *(model for model in broken if model in since and now - since[model] >= self._after_s)]

    def _look(self, broken: Sequence[str]) -> None:
        """Note since when nobody else has served these models; what is not known changes nothing."""
        now = time.monotonic()
        if not broken or now - self._looked_at < _LOOK_S:
            return
        with suppress(redis.RedisError):
            names = [str(name) for name in self._client.hkeys(RESIDENTS) if name != self._worker]
            said = self._client.mget([WORKER_PREFIX + name for name in names]) if names else []
            elsewhere = {model for text in said if text for model in json.loads(str(text)).get("models", ())}
            before = self._unserved_since
            self._unserved_since = {model: before.get(model, now) for model in broken if model not in elsewhere}
            self._looked_at = now
