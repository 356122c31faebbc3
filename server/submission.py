"""What a client asks of the queue beside its video, in headers that every dialect's submit takes.

    Idempotency-Key       the same key with the same request is the same job, for 24 hours
    X-Polyreel-Priority   interactive (default) or bulk
    X-Polyreel-Exact      true: never share a pipeline call with other requests

Source of the first: the IETF's draft "The Idempotency-Key HTTP Header Field". Its text is taken as it comes, quotes
included.
"""

from __future__ import annotations

import hashlib
import re

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from polyreel.errors import InvalidRequest
from polyreel.terms import LANES, Lane, Terms

_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_LANES: dict[str, Lane] = {lane: lane for lane in LANES}
_FLAGS = {"1": True, "true": True, "0": False, "false": False}

#: Longest body that is digested on the event loop, bytes: a tenth of a millisecond.
_BRIEF = 64 * 1024


async def read_terms(request: Request, dialect: str, body: bytes) -> Terms:
    """Return what the headers of a submit say.

    Args:
        dialect: in which the request came.
        body: as it came; with the dialect, the method and the path it tells a repetition from another request.

    Raises:
        InvalidRequest: names the header, what came and what is allowed.
    """
    key = _idempotency_key(request)
    return Terms(
        lane=_LANES[_word(request, "X-Polyreel-Priority", "interactive", _LANES)],
        exact=_FLAGS[_word(request, "X-Polyreel-Exact", "false", _FLAGS)],
        idempotency_key=key,
        digest=await _digest(dialect, request.method, request.url.path, body) if key else "",
    )


def _idempotency_key(request: Request) -> str:
    keys = request.headers.getlist("Idempotency-Key")
    if not keys:
        return ""
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        got = f"{len(keys)} of them" if len(keys) > 1 else f"{len(keys[0])} characters"
        raise InvalidRequest(
            f"Idempotency-Key must be one text of 1 to 255 printable ASCII characters, got {got}", "Idempotency-Key"
        )
    return keys[0]


def _word(request: Request, header: str, default: str, allowed: dict[str, Lane] | dict[str, bool]) -> str:
    word = request.headers.get(header, default).strip().lower()
    if word not in allowed:
        # What came is not repeated: a header may hold anything, a key that stands in the wrong one too.
        raise InvalidRequest(f"{header} must be one of {', '.join(allowed)}", header)
    return word


async def _digest(dialect: str, method: str, path: str, body: bytes) -> str:
    def digest() -> str:
        # Quoted, so that no path can be taken for the beginning of a body.
        named = repr((dialect, method, path)).encode("utf-8", "surrogatepass")
        return hashlib.sha256(named + b"\n" + body).hexdigest()

    return digest() if len(body) <= _BRIEF else await run_in_threadpool(digest)
