"""Secrets of webhooks: each owner's own, the same after every restart and upgrade, and never in a log."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from polyreel.errors import ConfigurationError
from polyreel.logs import redact
from polyreel.profiles import load_settings
from polyreel.signing import WebhookSigner, load_signer, message_id

#: 32 times the letter a.
SERVER_SECRET = "whsec_YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE="

#: By openssl: the HMAC-SHA256 of "webhooks of alice" under those.
ALICES = "whsec_ZEfKyoJh5EdefcgD6Q6I2/qoR6QQqGrG5mxTCUWWjUY="


def test_an_owners_secret_never_changes_while_the_servers_does_not() -> None:
    """Receivers have it; another way to derive it would silence them all."""
    signer = load_signer(load_settings(webhook_secrets=SERVER_SECRET).settings)
    assert signer.secrets_of("alice") == [ALICES]
    assert signer.secrets_of("bob") != [ALICES]


def test_without_a_setting_the_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path).settings
    first = load_signer(settings).secrets_of("alice")
    assert load_signer(settings).secrets_of("alice") == first
    made = (tmp_path / "webhook-secret").read_bytes()
    given = load_settings(webhook_secrets="whsec_" + base64.b64encode(made).decode()).settings
    assert load_signer(given).secrets_of("alice") == first, "as docs/webhooks.md says"


def test_the_headers_are_those_of_standard_webhooks() -> None:
    headers = WebhookSigner([b"a" * 32, b"b" * 32]).headers("alice", "msg_1", 1614265330.9, "{}")
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("msg_1", "1614265330")
    first, second = headers["webhook-signature"].split(" ")
    assert first != second
    assert all(
        signature.startswith("v1,") and len(base64.b64decode(signature[3:])) == 32 for signature in (first, second)
    )


def test_a_messages_id_is_its_jobs() -> None:
    assert message_id("0b7e0d1c-2699-41c6-b2c5-3e60bdefadd1") == "msg_0b7e0d1c269941c6b2c53e60bdefadd1"


@pytest.mark.parametrize(
    "secret",
    ["whsec_", "whsec_YWFh", "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=", "whsec_" + "a" * 33, "whsec_" + "a" * 200,
     "whsec_YWFhYWFhYWFhYWFhYWFhYWFhYWFh-WFhYWFhYWFhYWE="],
)  # fmt: skip
def test_a_secret_that_is_none_stops_the_start_and_is_not_quoted(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="24 to 64 random bytes in base64") as refused:
        load_settings(webhook_secrets=f"{SERVER_SECRET},{secret}")
    assert "webhook_secrets" in str(refused.value)
    assert secret == "whsec_" or secret not in str(refused.value)


def test_a_secret_is_taken_out_of_logs() -> None:
    assert redact(f"signed by {SERVER_SECRET} just now") == "signed by whsec_*** just now"
