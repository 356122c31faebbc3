"""Where clients put their API key: what an `Authorization` header holds, in the forms that real clients send."""

from __future__ import annotations

from fastapi import Request


def bearer(request: Request) -> str | None:
    """Return the key of `Authorization: Bearer KEY`, or None.

    The scheme's case does not matter, and a colon after it is accepted: Hugging Face's own page documents the header
    as `'Bearer: hf_****'`.
    """
    scheme, _, key = request.headers.get("authorization", "").strip().partition(" ")
    return key.strip() or None if scheme.rstrip(":").lower() == "bearer" else None


def bearer_or_raw(request: Request) -> str | None:
    """As `bearer`, or the whole header when it has no scheme: Novita's npm client sends `Authorization: KEY`."""
    return bearer(request) or (_raw(request.headers.get("authorization", "").strip()) or None)


def _raw(header: str) -> str:
    return header if " " not in header and header.rstrip(":").lower() != "bearer" else ""
