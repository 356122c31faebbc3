"""The three secrets that all machines of one server share: what signs links and webhooks, and the pepper of keys.

    polyreel:secret:link      signs links to files, base64
    polyreel:secret:pepper    keys the hashes of API keys, base64
    polyreel:secret:webhook   every owner's webhook secret is derived from it, base64

A secret of the settings (`link_secret`, `key_pepper`, `webhook_secrets`, best from secret files) is used as it is and
never written anywhere. Where there is none, the first process makes one in Redis and all others read it, so that any
number of machines need nothing but the same `redis_url`. A file of the state folder, where older versions kept it, is
what the first process begins with, so that links and keys from before stay good; and each machine keeps a copy there,
with which a Redis that lost its memory is given the same again.

A process that cannot reach Redis makes nothing up: it has no secret until Redis answers.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from pathlib import Path
from typing import Literal

import redis
import structlog

from polyreel.errors import ConfigurationError
from polyreel.keys import digest_of
from polyreel.records import connect, redis_errors
from polyreel.secret_files import put_first, read_or_make
from polyreel.settings import Settings

log = structlog.get_logger()

Name = Literal["link", "pepper", "webhook"]

#: File of each in the state folder.
FILES: dict[Name, str] = {"link": "link-secret", "pepper": "pepper", "webhook": "webhook-secret"}

#: What a machine whose file says something else finds.
_CONSEQUENCES: dict[Name, str] = {
    "link": "links that this machine gave before are not good any more (old_link_secrets can name its secret)",
    "pepper": "keys that were made with this machine's are not good any more",
    "webhook": "receivers that know the secrets of before refuse webhooks (webhook_secrets can name both)",
}

#: Which pepper the stored keys are keyed with, as a hash of it.
KEYED_WITH = "polyreel:keys:pepper"


def redis_name(name: Name) -> str:
    """Return the Redis key of a secret."""
    return f"polyreel:secret:{name}"


def shared_secret(settings: Settings, name: Name) -> bytes:
    """Return a secret that the settings do not give; blocks.

    Without `redis_url` there is nobody to share it with: it is the state folder's.

    Raises:
        QueueUnavailable: Redis does not answer; it is not known then.
        ConfigurationError: the keys in Redis were made under a pepper that only another machine knows.
    """
    path = settings.state_dir / FILES[name]
    if settings.redis_url is None:
        return read_or_make(path)
    with redis_errors(), connect(settings.redis_url.get_secret_value(), patient=False) as client:
        text = client.get(redis_name(name)) or _make(client, name, path)
    secret = base64.b64decode(str(text))
    _keep_copy(name, secret, path)
    return secret


def pepper_proof(pepper: bytes) -> str:
    """Return what is kept in Redis of the pepper that keys were made under."""
    return digest_of(pepper, KEYED_WITH)


def _make(client: redis.Redis, name: Name, path: Path) -> str:
    """Give Redis its secret, the file's where there is one, unless somebody else has; return what it has now."""
    kept = path.read_bytes() if path.exists() else None
    if name == "pepper" and (theirs := client.get(KEYED_WITH)):
        _check_pepper(kept, str(theirs))
    made = base64.b64encode(kept or secrets.token_bytes(32)).decode()
    client.set(redis_name(name), made, nx=True)  # whoever is first; all read what is there then
    return str(client.get(redis_name(name)))


def _check_pepper(kept: bytes | None, theirs: str) -> None:
    """An upgraded installation has keys: only the pepper that they were made under may be shared."""
    if kept is None or not hmac.compare_digest(pepper_proof(kept), theirs):
        raise ConfigurationError(
            "key_pepper: the keys in this Redis were made under a pepper that this machine does not have. Start the "
            "machine that made them first (it gives its pepper to all, through Redis), or set POLYREEL_KEY_PEPPER to "
            "the text that it had."
        )


def _keep_copy(name: Name, secret: bytes, path: Path) -> None:
    try:
        if not path.exists():
            put_first(path, secret)
        elif not hmac.compare_digest(path.read_bytes(), secret):
            log.warning(
                "this machine kept another secret than all machines share; the shared one is used",
                file=str(path),
                consequence=_CONSEQUENCES[name],
                cure="delete the file when that is as it should be",
            )
    except OSError as err:  # it is a copy: where the folder cannot be written, Redis has it all the same
        log.debug("no copy of a shared secret is kept here", file=str(path), reason=str(err.strerror))
