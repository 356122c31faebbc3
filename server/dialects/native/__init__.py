"""Polyreel's own API, `/polyreel/v1`: read and cancel a job, whichever dialect it was submitted in.

    GET  /polyreel/v1/jobs/{id}
    POST /polyreel/v1/jobs/{id}/cancel

Errors are RFC 9457 problems. Every field is in `docs/compatibility/native.md`.
"""

from __future__ import annotations

from fastapi import APIRouter

from server.dialects import Dialect
from server.dialects.native import jobs
from server.dialects.native.problems import render_error

#: Each noun has a module with a router of its own.
_NOUNS = (jobs,)

router = APIRouter(prefix="/polyreel/v1")
for noun in _NOUNS:
    router.include_router(noun.router)

DIALECT = Dialect(name="native", prefixes=("/polyreel/",), router=router, render_error=render_error)
