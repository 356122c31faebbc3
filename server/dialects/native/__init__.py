"""Polyreel's own API, `/polyreel/v1`: all that the server can do. The web page and the command line use only this.

    GET  /polyreel/v1
    POST /polyreel/v1/jobs
    GET  /polyreel/v1/jobs
    GET  /polyreel/v1/jobs/{id}
    DEL  /polyreel/v1/jobs/{id}
    POST /polyreel/v1/jobs/{id}/cancel
    GET  /polyreel/v1/jobs/{id}/preview
    GET  /polyreel/v1/jobs/{id}/events
    GET  /polyreel/v1/jobs/{id}/deliveries
    POST /polyreel/v1/jobs/{id}/redeliver
    GET  /polyreel/v1/webhooks/secret
    GET  /polyreel/v1/models
    POST /polyreel/v1/models/{name}/load, unload, pin or unpin
    GET  /polyreel/v1/status
    GET  /polyreel/v1/usage
    GET  /polyreel/v1/audit
    POST /polyreel/v1/snippets

Errors are RFC 9457 problems. Every field is in `docs/compatibility/native.md`.
"""

from __future__ import annotations

from fastapi import APIRouter

from server.dialects import Dialect, Example
from server.dialects.native import audit, events, jobs, models, snippets, status, webhooks
from server.dialects.native.problems import render_error
from server.dialects.native.video import snippet

#: Each noun has a module with a router of its own.
_NOUNS = (jobs, events, models, status, snippets, webhooks, audit)

router = APIRouter(prefix="/polyreel/v1")
router.add_api_route("", status.discovery, **status.DISCOVERY)
for noun in _NOUNS:
    router.include_router(noun.router)

DIALECT = Dialect(
    name="native",
    prefixes=("/polyreel/",),
    router=router,
    render_error=render_error,
    webhook=webhooks.webhook,
    snippet=snippet,
    title="Polyreel",
    about="Our own API: all that the server can do, and the jobs of every dialect. The web page uses only this.",
    example=Example(
        title="an mp4 of 17 frames; ask for the job at its Location",
        path="/polyreel/v1/jobs",
        headers={"Authorization": "Bearer {key}", "Content-Type": "application/json"},
        body={
            "model": "wan2.2",
            "prompt": "a red circle moving right on a black background",
            "num_frames": 17,
            "height": 256,
            "width": 384,
            "num_inference_steps": 20,
        },
    ),
)
