"""What a receiver is sent: the dialect's own body, under our signature."""

from __future__ import annotations

import json

from polyreel.links import file_url, link_signer
from polyreel.records import StoredJob
from polyreel.settings import Settings
from polyreel.signing import WebhookSigner, load_signer, message_id
from server.courier.courier import Message
from server.dialects import dialect_settings, dialects


class Messages:
    """Makes messages of ended jobs.

    Args:
        settings: those of the API; links are signed by the same secret (`polyreel.shared_secrets`).

    Raises:
        ConfigurationError: a dialect's section is wrong.
        QueueUnavailable: the secrets are in Redis, which does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._links = link_signer(settings)
        self._signer: WebhookSigner = load_signer(settings)
        self._dialect_settings = dialect_settings(settings, settings.catalogue)

    def make(self, stored: StoredJob, now: float) -> Message:
        """Return what tells of a job's end.

        Args:
            now: seconds since the epoch.

        Raises:
            LookupError: the dialect is not there any more, or takes no webhooks.
            ValueError: there is a link to give, and nobody knows where this server is.
        """
        job = stored.job
        render = dialects()[job.dialect].webhook
        if render is None:
            raise LookupError(f"the dialect {job.dialect} takes no webhooks")
        base_url = self._settings.public_url or job.base_url

        def link(key: str, expires_at: float) -> str:
            if not base_url:
                raise ValueError("the job does not say under which address it was submitted")
            return file_url(self._links, base_url, key, expires_at)

        payload = render(stored, link, self._settings.retention_s, self._dialect_settings[job.dialect])
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
        headers = self._signer.headers(job.owner, message_id(job.id), now, body)
        return Message(job.webhook, body.encode(), {"Content-Type": "application/json", **headers})
