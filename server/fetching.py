"""Fetches what the links of one request lead to, through `polyreel.outbound`; what comes is looked at elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from polyreel.errors import NotFetched, OutboundFailed
from polyreel.outbound import Outbound
from server.pictures import MAX_BYTES

#: How long all links of a request may take together, seconds, and how much they may lead to, bytes.
FETCH_S = 20.0
MAX_FETCHED = 4 * MAX_BYTES

#: Requests of one process whose links are fetched at the same time.
MAX_FETCHES = 8


def fetch_links(outbound: Outbound, links: Sequence[tuple[str, str]]) -> list[bytes]:
    """Return what links lead to, one after the other; blocks.

    Args:
        links: field, in the client's words, and URL.

    Raises:
        UnsafeAddress: one leads where this server does not go for clients.
        NotFetched: nothing comes of one, too much, or not in time.
        InvalidRequest: one is no absolute URL.
    """
    ends_at, left_bytes = time.monotonic() + FETCH_S, MAX_FETCHED
    contents = []
    for field, url in links:
        left_s = ends_at - time.monotonic()
        if left_s <= 0 or left_bytes <= 0:
            raise NotFetched(
                f"{field}: all links of a request may take {FETCH_S:g} s and lead to {MAX_FETCHED} bytes together",
                field,
            )
        try:
            contents.append(outbound.fetch(url, min(MAX_BYTES, left_bytes), left_s, field).content)
        except OutboundFailed as err:
            raise NotFetched(err.message, field) from err
        left_bytes -= len(contents[-1])
    return contents
