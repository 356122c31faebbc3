"""API keys: what they look like, and who may use the server. Only keyed hashes of keys are kept, in memory and on disk.

A key that Polyreel makes is `prk_`, 8 characters that name it (no secret), 32 drawn at random (190 bits), and 6 of
checksum, so that scanners find leaked ones and a mistyped one is refused without asking anybody. `polyreel keys` makes
them; Redis keeps them (`polyreel.key_store`). Source of the form: GitHub's, "Behind GitHub's new authentication token
formats", 2021.

Keys from `POLYREEL_API_KEYS` or a secret file are free-form, because a team keeps the key that its clients already
send to the vendor. On a loopback address without any key configured, one is made, shown once, and remembered by its
hash in the state folder.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import string
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from polyreel.errors import ConfigurationError, InvalidKey, MissingKey, NotAllowed, did_you_mean
from polyreel.limits import KeyLimits as KeyLimits
from polyreel.secret_files import put_first, read_or_make
from polyreel.settings import MAX_KEY, Settings

#: Owner name of the key that is made on first start.
LOCAL_OWNER = "local"

#: What a key may do: submit and cancel jobs, read its owner's jobs, manage the server.
Scope = Literal["submit", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

#: What a key may do that names nothing else.
USUAL_SCOPES: frozenset[Scope] = frozenset({"submit", "read"})

#: What every key that Polyreel makes looks like; for secret scanners. docs/security.md publishes it.
KEY_PATTERN = r"prk_[0-9A-Za-z]{46}"

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_PREFIX, _ID, _SECRET, _CHECKSUM = "prk_", 8, 32, 6


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, as its key says.

    Args:
        owner: whose jobs it sees and makes.
        account: what its limits are counted by; "" is the owner. A key keeps it when it is rotated.
        scopes: what it may do.
        limits: how much.
        key: id of the stored key, "" for one of the settings or of the first start.
    """

    owner: str
    account: str = ""
    scopes: frozenset[Scope] = frozenset(SCOPES)
    limits: KeyLimits = field(default_factory=KeyLimits)
    key: str = field(default="", compare=False)

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


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach what listens on `host`."""
    return host in ("127.0.0.1", "localhost", "::1")


def new_key() -> str:
    """Return the text of a new key."""
    body = _PREFIX + "".join(secrets.choice(_BASE62) for _ in range(_ID + _SECRET))
    return body + _checksum(body)


def key_id(key: str) -> str | None:
    """Return the name in a key that Polyreel made; None for any other text, and where the checksum is wrong."""
    if not re.fullmatch(KEY_PATTERN, key) or _checksum(key[:-_CHECKSUM]) != key[-_CHECKSUM:]:
        return None
    return key[len(_PREFIX) : len(_PREFIX) + _ID]


def digest_of(pepper: bytes, key: str) -> str:
    """Return what is kept of a key: its HMAC-SHA256 under the pepper, hexadecimal.

    No slow hash: 190 random bits cannot be guessed, and one would let strangers keep the processors busy.
    """
    return hmac.new(pepper, key.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    """Return the CRC32 of a key's beginning, in six digits to base 62: a guard against mistakes, not against people."""
    number, digits = zlib.crc32(body.encode("ascii")), ""
    for _ in range(_CHECKSUM):
        number, digit = divmod(number, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits


@dataclass(frozen=True)
class ApiKeys:
    """The keys that this process knows by itself: those of the settings, or the one made on first start.

    Args:
        pepper: secret that the hashes are keyed with.
        callers: hexadecimal HMAC-SHA256 of a key to who sends it.
    """

    pepper: bytes
    callers: Mapping[str, Caller]

    def find(self, key: str | None) -> Caller | None:
        """Return whose key this is, None when it is none of these.

        The look-up compares hashes under a secret pepper, so its timing tells nothing about any key.

        Raises:
            MissingKey: no key, or an empty one.
            InvalidKey: longer than any key is.
        """
        if not key:
            raise MissingKey("No API key was sent.")
        if len(key) > MAX_KEY:
            raise unknown_key()
        return self.callers.get(digest_of(self.pepper, key))


def unknown_key() -> InvalidKey:
    """Return the error for a key that is not ours; it never repeats the key."""
    return InvalidKey("The API key is not known here.")


def load_keys(settings: Settings, has_stored: Callable[[], bool] = lambda: False) -> tuple[ApiKeys, str | None]:
    """Return the keys of this process, and the local key's text if it was made just now (to be shown once).

    Args:
        has_stored: whether Redis has a key that is good now; asked only where the answer matters.

    Raises:
        ConfigurationError: no key is configured or stored, and the host is not a loopback address; or `admins` names
            somebody who has no configured key.
    """
    for name in settings.admins:
        if name not in settings.api_keys:
            raise ConfigurationError(
                f"admins: {name} is no name of api_keys.{did_you_mean(name, settings.api_keys)} "
                "A stored key is made an admin's by `polyreel keys create NAME --scopes submit,read,admin`."
            )
    pepper = secrets.token_bytes(32)  # these hashes are never written anywhere
    callers = {
        digest_of(pepper, key.get_secret_value()): Caller(
            name, scopes=USUAL_SCOPES | ({"admin"} if name in settings.admins else set())
        )
        for name, key in settings.api_keys.items()
    }
    if callers:
        return ApiKeys(pepper, callers), None
    if not is_loopback(settings.host):
        if not has_stored():
            raise ConfigurationError(
                f"api_keys: there is no API key, and host {settings.host} can be reached from other machines. Make one "
                "(polyreel keys create NAME; with compose: docker compose run --rm server keys create NAME), or set "
                "POLYREEL_API_KEYS=name:key (16 or more characters), or listen on --host 127.0.0.1."
            )
        return ApiKeys(pepper, {}), None
    remembered = settings.state_dir / "local-key.json"
    made: str | None = None
    pepper = _local_pepper(settings.state_dir, is_first=not remembered.exists())
    if not remembered.exists():
        text = new_key()
        if put_first(remembered, json.dumps({digest_of(pepper, text): LOCAL_OWNER}).encode()):
            made = text
    owners: dict[str, str] = json.loads(remembered.read_text())
    return ApiKeys(pepper, {digest: Caller(owner) for digest, owner in owners.items()}), made


def forget_local_key(settings: Settings) -> None:
    """Let the next start make another local key: the text of this one was shown to nobody."""
    (settings.state_dir / "local-key.json").unlink(missing_ok=True)


def _local_pepper(state_dir: Path, *, is_first: bool) -> bytes:
    """Return what the hash of the local key is keyed with: this machine's own, not that of the keys in Redis."""
    own = state_dir / "local-pepper"
    if is_first or own.exists():
        return read_or_make(own)
    return read_or_make(state_dir / "pepper")  # a key that 0.1 made before these were two
