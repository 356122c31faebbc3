"""Hugging Face Inference: `POST /models/{model}` answers with the video's bytes.

Sources: the task pages "Text to Video" and "Image to Video" (huggingface.co/docs/inference-providers), the clients
huggingface_hub and @huggingface/inference, and the routes of huggingface/api-inference-community. What they leave open,
and every field, is in `docs/compatibility/huggingface.md`.
"""

from __future__ import annotations

from server.dialects import Dialect, Example
from server.dialects.huggingface import about, routes
from server.dialects.huggingface.errors import render_error
from server.dialects.huggingface.request import snippet
from server.dialects.huggingface.settings import HuggingFaceSettings

routes.router.include_router(about.router)

DIALECT = Dialect(
    name="huggingface",
    prefixes=("/models/", "/hf-inference/", "/pipeline/", "/status/", "/api/models/"),
    router=routes.router,
    render_error=render_error,
    settings=HuggingFaceSettings,
    snippet=snippet,
    title="Hugging Face Inference",
    about="`POST /models/{model}` answers with the video itself, as Hugging Face's Inference API does.",
    example=Example(
        title="answers with the mp4 itself",
        path="/models/Wan-AI/Wan2.1-T2V-1.3B",
        headers={"Authorization": "Bearer {key}", "Content-Type": "application/json"},
        body={"inputs": "a red circle moving right on a black background"},
        saves_to="huggingface.mp4",
    ),
)
