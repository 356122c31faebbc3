"""What an API process learns once Redis answers: the secrets that all machines share, and that it stores where they do.

Redis need not answer when a process starts. What needs a secret is refused until then, as is all else that needs Redis;
nothing is made up meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from polyreel.errors import ConfigurationError, QueueUnavailable
from polyreel.key_store import pepper_of
from polyreel.links import LinkSigner, link_signer
from polyreel.records import connect
from polyreel.settings import Settings
from polyreel.signing import WebhookSigner, load_signer
from polyreel.storage import Storage
from polyreel.storage_marker import claim

log = structlog.get_logger()

#: How long a request waits for it, seconds.
_PATIENCE_S = 0.1


@dataclass(frozen=True, slots=True)
class Secrets:
    """What is signed with, and what the hashes of keys are keyed with."""

    links: LinkSigner
    webhooks: WebhookSigner
    pepper: bytes


class Joining:
    """One process's place among the others.

    Args:
        storage: to be compared with that of the others; None where it was not taken from the settings (tests).

    Attributes:
        misfit: why this process does not fit the others, found when Redis came back after the start.
        on_misfit: called then, in a thread; whoever runs the process ends it.
    """

    def __init__(self, settings: Settings, storage: Storage | None) -> None:
        self._settings, self._storage = settings, storage
        self._attempt: asyncio.Task[None] | None = None
        self._secrets: Secrets | None = None
        self._has_joined = False
        self.misfit: ConfigurationError | None = None
        self.on_misfit: Callable[[], None] = lambda: None

    @property
    def secrets(self) -> Secrets:
        """The secrets.

        Raises:
            QueueUnavailable: Redis has not answered since this process began.
        """
        if self._secrets is None:
            raise QueueUnavailable("The queue does not answer right now. Try again in a few seconds.")
        return self._secrets

    def join(self) -> None:
        """Learn the secrets and compare the storage; blocks.

        Raises:
            QueueUnavailable: Redis does not answer.
            ConfigurationError: this process does not fit the others.
        """
        # Those of the settings are known without Redis.
        self._secrets = Secrets(link_signer(self._settings), load_signer(self._settings), pepper_of(self._settings))
        url = self._settings.redis_url
        if self._storage is not None and url is not None:
            with connect(url.get_secret_value(), patient=False) as client:
                claim(client, self._storage, self._settings)
        self._has_joined = True

    async def join_late(self) -> None:
        """Do so for a request, where Redis was away at the start; one that needs a secret finds out by itself.

        Waits no longer than a Redis that is well takes: a request has its own time to find out that it hangs.
        """
        if self._has_joined or self.misfit is not None:
            return
        if self._attempt is None or self._attempt.done():  # one at a time, however many ask
            self._attempt = asyncio.create_task(run_in_threadpool(self._try))
        await asyncio.wait({self._attempt}, timeout=_PATIENCE_S)

    def _try(self) -> None:
        with suppress(QueueUnavailable):
            try:
                self.join()
            except ConfigurationError as err:
                self.misfit = err
                log.critical("this process does not fit the others and ends", reason=str(err))
                self.on_misfit()


class Joined:
    """ASGI middleware: asks Redis before a request begins, while it has not answered; `/health` needs no answer."""

    def __init__(self, app: ASGIApp, joining: Joining) -> None:
        self.app, self._joining = app, joining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope["path"] != "/health":
            await self._joining.join_late()
        await self.app(scope, receive, send)
