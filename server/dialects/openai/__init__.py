"""OpenAI's Videos API: `/v1/videos` and `/v1/models`, the common language of self-hosted video servers.

Sources: the API reference "Videos" and the guide "Video generation" on developers.openai.com, the `openai` Python
package 3.54.0 (resources/videos.py, types/video*.py), and vLLM-Omni's "Videos API" for the fields beyond OpenAI's own.
OpenAI has shut its own endpoint down (2026-09-24); clients and servers of others go on speaking it. Every field, and
what we decided, is in `docs/compatibility/openai.md`.
"""

from __future__ import annotations

from fastapi import APIRouter

from server.dialects import Dialect, Example
from server.dialects.openai.creation import OpenAISettings, check, snippet
from server.dialects.openai.errors import render_error
from server.dialects.openai.models import router as models_router
from server.dialects.openai.videos import router as videos_router

router = APIRouter(prefix="/v1")
router.include_router(videos_router)
router.include_router(models_router)

DIALECT = Dialect(
    name="openai",
    prefixes=("/v1/",),
    router=router,
    render_error=render_error,
    settings=OpenAISettings,
    snippet=snippet,
    title="OpenAI Videos",
    about="`/v1/videos` as OpenAI's clients know it: create, poll, download, list, remix, delete.",
    check=check,
    example=Example(
        title="answers with a video's id",
        path="/v1/videos",
        headers={"Authorization": "Bearer {key}", "Content-Type": "application/json"},
        body={"prompt": "a red circle moving right on a black background", "seconds": "1", "size": "256x256"},
    ),
)
