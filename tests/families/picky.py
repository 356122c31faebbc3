"""Has requests that it cannot make, as a pipeline has prompts that end in NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models import OnProgress, PreparedRequest, Video
from polyreel.errors import GenerationFailed
from tests.families.quick import Quick


class Picky(Quick):
    """A family that fails a call with a prompt that says "impossible", whatever else is in the call."""

    name = "picky"

    def generate(self, model: Any, requests: Sequence[PreparedRequest], on_progress: OnProgress) -> list[Video]:
        videos = super().generate(model, requests, on_progress)
        if any("impossible" in prepared.request.prompts[0].prompt for prepared in requests):
            raise GenerationFailed("The pipeline returned NaN; try another seed.")
        return videos
