"""Signed links to stored files: whoever has the link may read the file until it expires, without an API key.

Every vendor's client fetches result URLs without its key, so the link itself must be unguessable. The signature is
HMAC-SHA256 over the key and the expiry, as in S3's presigned links (and like there, both are readable in the link).
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from urllib.parse import quote

from polyreel.settings import Settings
from polyreel.shared_secrets import shared_secret


@dataclass(frozen=True)
class LinkSigner:
    """Makes and checks links of the form `/files/{key}?exp={seconds}&sig={hex}`.

    Args:
        secret: signs, shared by all API processes and couriers.
        old: secrets that signed before; their links stay good until they expire.
    """

    secret: bytes
    old: tuple[bytes, ...] = ()

    def _signature(self, key: str, expires_at: int, secret: bytes | None = None) -> str:
        text = f"v1\nGET\n{key}\n{expires_at}".encode()
        return hmac.new(secret or self.secret, text, hashlib.sha256).hexdigest()

    def path(self, key: str, expires_at: float) -> str:
        """Return the path and query of a link that is good until `expires_at` (seconds since the epoch)."""
        whole = int(expires_at)
        return f"/files/{quote(key)}?exp={whole}&sig={self._signature(key, whole)}"

    def is_valid(self, key: str, exp: str, sig: str, now: float | None = None) -> bool:
        """Return whether a link's parts belong together and have not expired."""
        if not (exp.isascii() and exp.isdigit() and len(exp) <= 12 and sig.isascii()):
            return False
        secrets = (self.secret, *self.old)
        good = any(hmac.compare_digest(self._signature(key, int(exp), secret), sig) for secret in secrets)
        return good and int(exp) > (time.time() if now is None else now)


def link_signer(settings: Settings) -> LinkSigner:
    """Return the signer of this server: with the secrets of the settings, else with the one that all machines share.

    Raises:
        QueueUnavailable: as `shared_secret`.
    """
    given = settings.link_secret
    secret = given.get_secret_value().encode() if given else shared_secret(settings, "link")
    return LinkSigner(secret, tuple(old.get_secret_value().encode() for old in settings.old_link_secrets))


def file_url(signer: LinkSigner, base_url: str, key: str, expires_at: float) -> str:
    """Return an absolute link under `base_url` to a stored or future file.

    Always ours, also where the storage has web addresses of its own: a link is given before anybody knows which attempt
    will make the file, so our route looks that up and leads on to where it lies.

    Args:
        key: public key, of `VideoJob.output_keys`.
    """
    return base_url + signer.path(key, expires_at)
