"""`extra`, which every submit of Novita's takes: the kind of file, and a webhook.

Sources: novita.ai/docs "Text to Video" and "Webhook".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from server.snippets import Wish, given


class TestMode(BaseModel):
    """Of a webhook: send a mock event instead of generating."""

    __test__ = False  # pytest would take it for a test

    enabled: bool
    return_task_status: Literal["TASK_STATUS_SUCCEED", "TASK_STATUS_FAILED"]


class Webhook(BaseModel):
    """Where to tell of the end."""

    url: str
    test_mode: TestMode | None = None


class Extra(BaseModel):
    """The optional extras; `enterprise_plan`, which the official client always sends, means nothing here."""

    response_video_type: Literal["mp4", "gif"] | None = None
    webhook: Webhook | None = None


def extra_of(wish: Wish) -> dict[str, Any] | None:
    """Return the extras that say a request, None for none. Any: JSON."""
    kinds = [spec.format for spec in wish.request.outputs if spec.format in ("mp4", "gif")]
    return (
        given(
            response_video_type=kinds[0] if kinds and kinds[0] != "mp4" else None,
            webhook={"url": wish.webhook} if wish.webhook else None,
        )
        or None
    )
