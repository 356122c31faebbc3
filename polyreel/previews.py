"""Small pictures of videos in the making: written by a worker while it denoises, read by the API.

    polyreel:preview:{job id}  the newest one, JSON: {"step": n, "jpeg": base64}

A preview is as private as its job: whoever reads one has read the record of the job first, as its owner. It is written
with the report of a step (`Records.advance_all`), in the same script, so it costs no wait of its own, and none is
written of a job that has ended or belongs to another worker by now. It goes with the end of the job (`finish` in
lua/common.lua).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

#: What `Preview.jpeg` is.
MEDIA_TYPE = "image/jpeg"


@dataclass(frozen=True, slots=True)
class Preview:
    """One picture.

    Args:
        jpeg: a frame of the middle of the video, in its proportions, no side longer than 160 px, about 10 kB at
            most. It is to be shown enlarged: of an LTX video of 512 x 768 px it has 16 x 24.
        step: denoising steps that were done, over all passes.
    """

    jpeg: bytes
    step: int


def preview_key(job_id: str) -> str:
    """Return the key of a job's preview; `parse_preview` reads what is there."""
    return f"polyreel:preview:{job_id}"


def preview_text(preview: Preview) -> str:
    """Return what is kept of a preview."""
    return json.dumps({"step": preview.step, "jpeg": base64.b64encode(preview.jpeg).decode()})


def parse_preview(text: object) -> Preview | None:
    """Read what `preview_text` made; None for nothing, and for what cannot be read."""
    if not text:
        return None
    try:
        said = json.loads(str(text))
        return Preview(base64.b64decode(said["jpeg"], validate=True), int(said["step"]))
    except (KeyError, TypeError, ValueError):
        return None
