"""The size and number of frames that Wan makes for a request, and the way from there to what is delivered.

Without `native` that is the next legal geometry, of which the surplus is cut off (`models._geometry`); with it one
that the checkpoint was trained for, which is scaled (`models._native`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models import Pipeline
from models._geometry import fit, legal_frames, round_up
from models._native import is_cut, moments, scale
from models._run import to_pixels
from models._second_pass import num_steps
from models._wan_layouts import multiples
from polyreel.entries import Native
from polyreel.request import Upscale, VideoRequest


class WanGeometry:
    """What is made for one request; requests that share a batch share this.

    Args:
        pipeline: says what is legal.
        native: of the checkpoint.
        request: whose video it is.
        keeps_last: a picture is for the last frame, so the end cannot be cut off.

    Attributes:
        num_frames: that are denoised.
        is_stretched: the made frames stand for all that were asked for, the first for the first and the last for the
            last; else frame n is frame n, and what is too much is behind it.
    """

    def __init__(self, pipeline: Pipeline, native: Native | None, request: VideoRequest, *, keeps_last: bool) -> None:
        self._native = native
        self._request = request
        self._multiples = multiples(pipeline)
        asked = request.num_frames
        self.num_frames = (
            native.num_frames_for(asked) if native else legal_frames(asked, pipeline.vae_scale_factor_temporal)
        )
        self.is_stretched = keeps_last or not is_cut(self.num_frames, asked)
        self._moments = moments(self.num_frames, asked, keeps_last=keeps_last)

    def size(self, asked: VideoRequest | Upscale) -> tuple[int, int]:
        """Return the height and width, pixels, of the pass that is asked for these."""
        if self._native:
            return self._native.size_for(asked.height, asked.width)
        vertical, horizontal = self._multiples
        return round_up(asked.height, vertical), round_up(asked.width, horizontal)

    def frames(self, video: np.ndarray, asked: VideoRequest | Upscale) -> np.ndarray:
        """Return all frames of a pass; those of a native size whole, others without the borders.

        Args:
            video: (num_frames, *size(asked), 3), floats 0..1.

        Returns:
            uint8 of (num_frames, height, width, 3).

        Raises:
            GenerationFailed: NaN or infinite values.
        """
        return to_pixels(video if self._native else fit(video, self.num_frames, asked.height, asked.width))

    def deliver(self, frames: np.ndarray) -> np.ndarray:
        """Return exactly what was asked for of the frames of the last pass.

        Args:
            frames: from `frames`.

        Returns:
            uint8 of (request's num_frames, delivered_height, delivered_width, 3).
        """
        return scale(frames, self._moments, self._request.delivered_height, self._request.delivered_width)

    def facts(self) -> dict[str, Any]:
        """Return for the receipt what was denoised where it is not what was asked, and what became of it. JSON."""
        request, (height, width) = self._request, self.size(self._request)
        facts: dict[str, Any] = {}
        if (self.num_frames, height, width) != (request.num_frames, request.height, request.width):
            facts["denoised"] = {"num_frames": self.num_frames, "height": height, "width": width}
        last = request.upscale if request.upscale and num_steps(request.upscale) else request
        if self._native and self.size(last) != (request.delivered_height, request.delivered_width):
            facts["scaled"] = "lanczos"
        if not is_cut(self.num_frames, request.num_frames):
            facts["spread_over_time"] = "linear"
        elif self.is_stretched and self.num_frames > request.num_frames:
            left_out = set(range(self.num_frames)) - {int(moment) for moment in self._moments}
            facts["left_out_frames"] = sorted(left_out)
        return facts
