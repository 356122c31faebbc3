"""Small secrets: those that the server makes and keeps in its state folder for its user, and how some are written."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path


def read_or_make(path: Path) -> bytes:
    """Return the 32 bytes kept in `path`, drawing them if the file is not there yet.

    Several processes may call this at once: whoever links its file first wins, and all return the same bytes.
    """
    if not path.exists():
        put_first(path, secrets.token_bytes(32))
    return path.read_bytes()


def put_first(path: Path, content: bytes) -> bool:
    """Write a file that only its user can read, whole or not at all, unless there is one; return whether it is ours."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    draft.touch(mode=0o600)
    draft.write_bytes(content)
    try:
        os.link(draft, path)  # unlike a rename, a link never replaces what another process put there
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def webhook_secret_bytes(text: str) -> bytes:
    """Return what a `whsec_…` secret stands for.

    Raises:
        ValueError: it is not 24 to 64 bytes in base64; does not quote it.

    Source: Standard Webhooks, "Signature scheme".
    """
    encoded = text.removeprefix("whsec_").rstrip("=")
    try:
        secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        secret = b""
    if not text.startswith("whsec_") or not 24 <= len(secret) <= 64:
        raise ValueError('write "whsec_" and 24 to 64 random bytes in base64: echo whsec_$(openssl rand -base64 32)')
    return secret
