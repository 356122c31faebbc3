"""Where clients put their API key: what an `Authorization` header holds, in the forms that real clients send.

Never in the address: it is in the logs of every proxy on the way.
"""

from __future__ import annotations

from fastapi import Request

from polyreel.errors import InvalidKey


def the_only(*keys: str | None) -> str | None:
    """Return the key that a request carries, None for none.

    Raises:
        InvalidKey: two different ones. Whose request it is must not depend on where we look first.
    """
    found = {key for key in keys if key}
    if len(found) > 1:
        raise InvalidKey("Two different API keys were sent; send one.")
    return next(iter(found), None)


def bearer(request: Request) -> str | None:
    """Return the key of `Authorization: Bearer KEY`, or None.

    The scheme's case does not matter, and a colon after it is accepted: Hugging Face's own page documents the header
    as `'Bearer: hf_****'`.

    Raises:
        InvalidKey: two headers with different keys.
    """
    return the_only(*(_bearer(header) for header in _headers(request)))


def bearer_or_raw(request: Request) -> str | None:
    """As `bearer`, or the whole header when it has no scheme: Novita's npm client sends `Authorization: KEY`."""
    return the_only(*(_bearer(header) or _raw(header) for header in _headers(request)))


def _headers(request: Request) -> list[str]:
    return [header.strip() for header in request.headers.getlist("authorization")]


def _bearer(header: str) -> str | None:
    scheme, _, key = header.partition(" ")
    return key.strip() or None if scheme.rstrip(":").lower() == "bearer" else None


def _raw(header: str) -> str:
    return header if " " not in header and header.rstrip(":").lower() != "bearer" else ""
