"""`extra`, which every submit of Novita's takes: the kind of file, and a webhook.

Sources: novita.ai/docs "Text to Video" and "Webhook".
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


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
