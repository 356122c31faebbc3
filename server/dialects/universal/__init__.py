"""Hugging Face universal handler: `POST /` answers with gif, webm or zip in base64.

Sources: the model card "Video Generation Endpoint API (Universal Handler)", and huggingface-inference-toolkit, in which
such a handler runs (its route `/predict`, its text for missing inputs, its `Ok`). What the card leaves open, and every
field, is in `docs/compatibility/universal.md`.
"""

from __future__ import annotations

from server.dialects import Dialect, Example
from server.dialects.universal.errors import render_error
from server.dialects.universal.request import snippet
from server.dialects.universal.routes import answer, router
from server.dialects.universal.settings import UniversalSettings, check

DIALECT = Dialect(
    name="universal",
    prefixes=("/", "/predict"),
    router=router,
    render_error=render_error,
    settings=UniversalSettings,
    snippet=snippet,
    title="Hugging Face universal handler",
    about="`POST /` answers with gif, webm or zip in base64, as a video handler of an Inference Endpoint does.",
    check=check,
    answer=answer,
    example=Example(
        title="answers with a gif in base64",
        path="/",
        headers={"Authorization": "Bearer {key}", "Content-Type": "application/json"},
        body={
            "inputs": {
                "prompt": "a red circle moving right on a black background",
                "num_frames": 17,
                "outputs": ["gif"],
            }
        },
    ),
)
