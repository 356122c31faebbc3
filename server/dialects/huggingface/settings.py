"""The section `dialects: huggingface:` of a profile."""

from __future__ import annotations

from typing import Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict


class HuggingFaceSettings(BaseModel):
    """What the documents and today's clients see differently.

    Args:
        wait_for_model: hold a request while its model loads. False answers 503 as documented, unless the client
            sends `x-wait-for-model: true`; the JavaScript client repeats a 503 without a pause and without an end.
        wait_s: longest time that a request is held, seconds; Node's fetch gives up after 300.
        cache: which requests are answered from earlier ones: "all" as documented, "seeded" only those with a seed.
        cancel_when_client_leaves: end a job when its client hangs up and nobody else waits for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    wait_for_model: bool = True
    wait_s: float = 290.0
    cache: Literal["all", "seeded", "off"] = "all"
    cancel_when_client_leaves: bool = True


def settings_of(request: Request) -> HuggingFaceSettings:
    """Return the settings of the app that serves `request`."""
    found: HuggingFaceSettings = request.app.state.dialect_settings["huggingface"]
    return found
