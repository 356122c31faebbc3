"""Signs webhooks as Standard Webhooks 1.0 says, with a secret for each owner.

An owner's secret is derived from the server's by HMAC, so nothing is stored per owner, and nobody who knows one secret
can work out another's. While the server's secret is being changed there are several: every message carries a signature
by each, and a receiver that knows any one of them accepts it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from standardwebhooks import Webhook

from polyreel.secret_files import webhook_secret_bytes
from polyreel.settings import Settings
from polyreel.shared_secrets import shared_secret


def message_id(job_id: str) -> str:
    """Return the id of a job's webhook, the same over all attempts: receivers know repetitions by it."""
    return f"msg_{job_id.replace('-', '')}"


@dataclass(frozen=True)
class WebhookSigner:
    """Signs for every owner.

    Args:
        server_secrets: the newest first.
    """

    server_secrets: Sequence[bytes]

    def secrets_of(self, owner: str) -> list[str]:
        """Return an owner's secrets as receivers' libraries want them ("whsec_…"), the newest first."""
        return [
            "whsec_" + base64.b64encode(hmac.digest(secret, b"webhooks of " + owner.encode(), hashlib.sha256)).decode()
            for secret in self.server_secrets
        ]

    def headers(self, owner: str, message: str, at: float, body: str) -> dict[str, str]:
        """Return the headers that prove a message.

        Args:
            message: from `message_id`.
            at: of this attempt, seconds since the epoch; receivers refuse what is more than five minutes off.
            body: exactly as it is sent.
        """
        moment = datetime.fromtimestamp(int(at), UTC)
        signatures = [Webhook(secret).sign(message, moment, body) for secret in self.secrets_of(owner)]
        return {
            "webhook-id": message,
            "webhook-timestamp": str(int(at)),
            "webhook-signature": " ".join(signatures),
        }


def load_signer(settings: Settings) -> WebhookSigner:
    """Return the signer of this server; without `webhook_secrets` its secret is the one that all machines share.

    Raises:
        QueueUnavailable: as `shared_secret`.
    """
    if settings.webhook_secrets:
        return WebhookSigner([webhook_secret_bytes(secret.get_secret_value()) for secret in settings.webhook_secrets])
    return WebhookSigner([shared_secret(settings, "webhook")])
