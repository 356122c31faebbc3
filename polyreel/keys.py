"""API keys: who may use the server. Only keyed hashes of keys are kept, in memory and on disk.

Keys from `POLYREEL_API_KEYS` or a secret file are free-form, because a team keeps the key that its clients already
send to the vendor. On a loopback address without any key configured, one is made, shown once, and remembered by its
hash in the state folder.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from polyreel.errors import ConfigurationError, InvalidKey, MissingKey, NotAllowed
from polyreel.secret_files import read_or_make
from polyreel.settings import Settings

#: Owner name of the key that is made on first start.
LOCAL_OWNER = "local"

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}

#: What a key may do: submit and cancel jobs, read its owner's jobs, manage the server.
Scope = Literal["submit", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How much one key may ask for; None is no limit of its own.

    Args:
        requests_per_minute: submits that are taken in a minute, 1 or more; polls are not counted.
        max_queued: unfinished jobs, 1 or more.
        max_running: jobs that run at the same time, 1 or more; more of them wait.
        gpu_seconds_per_day: seconds of a device in a day of UTC.
        models: catalogue names of the models that it may use; () is all.
    """

    requests_per_minute: int | None = None
    max_queued: int | None = None
    max_running: int | None = None
    gpu_seconds_per_day: float | None = None
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, as its key says.

    Args:
        owner: whose jobs it sees and makes.
        account: what its limits are counted by; "" is the owner. A key keeps it when it is rotated.
        scopes: what it may do.
        limits: how much.
    """

    owner: str
    account: str = ""
    scopes: frozenset[Scope] = frozenset(SCOPES)
    limits: KeyLimits = field(default_factory=KeyLimits)

    def need(self, scope: Scope) -> None:
        """Raise `NotAllowed` unless the key may do this."""
        if scope not in self.scopes:
            raise NotAllowed(f"This API key may not do this: it lacks the scope {scope!r}.")

    def need_model(self, model: str, called: str) -> None:
        """Raise `NotAllowed` unless the key may use a model.

        Args:
            model: catalogue name.
            called: as the client calls it.
        """
        if self.limits.models and model not in self.limits.models:
            raise NotAllowed(f"This API key may not use the model {called}.")


@dataclass(frozen=True)
class ApiKeys:
    """Tells whose key a request carries.

    Args:
        pepper: secret that the hashes are keyed with.
        owners: hexadecimal HMAC-SHA256 of a key to the name of its owner.
    """

    pepper: bytes
    owners: Mapping[str, str]

    def owner_of(self, key: str | None) -> str:
        """Return the owner's name.

        The look-up compares hashes under a secret pepper, so its timing tells nothing about any key.

        Raises:
            MissingKey: no key, or an empty one.
            InvalidKey: a key that is not ours.
        """
        if not key:
            raise MissingKey("No API key was sent.")
        owner = self.owners.get(_digest(self.pepper, key))
        if owner is None:
            raise InvalidKey("The API key is not known here.")
        return owner


def load_keys(settings: Settings) -> tuple[ApiKeys, str | None]:
    """Return the keys of this server, and the local key's text if it was made just now (to be shown once).

    Raises:
        ConfigurationError: no key is configured and the host is not a loopback address.
    """
    pepper = read_or_make(settings.state_dir / "pepper")
    owners = {_digest(pepper, key.get_secret_value()): name for name, key in settings.api_keys.items()}
    if owners:
        return ApiKeys(pepper, owners), None
    if settings.host not in _LOOPBACK:
        raise ConfigurationError(
            f"api_keys: no API key is configured, and host {settings.host} can be reached from other machines. "
            "Set POLYREEL_API_KEYS=name:key (16 or more characters), or listen on --host 127.0.0.1."
        )
    remembered = settings.state_dir / "local-key.json"
    made: str | None = None
    if not remembered.exists():
        made = f"pr_{secrets.token_urlsafe(24)}"
        draft = remembered.with_name(".local-key.json.part")
        draft.touch(mode=0o600, exist_ok=True)
        draft.write_text(json.dumps({_digest(pepper, made): LOCAL_OWNER}))
        draft.replace(remembered)
    return ApiKeys(pepper, json.loads(remembered.read_text())), made


def _digest(pepper: bytes, key: str) -> str:
    return hmac.new(pepper, key.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
