"""Model families: each module of this package runs one family of diffusers pipelines.

A family publishes `FAMILY`, an object with the attributes of `Family`. torch, transformers and diffusers are
imported inside `load()`, so that listing the families costs nothing; the API process never imports this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polyreel.discovery import discover
from polyreel.request import VideoRequest

#: Called after each denoising step with (steps done, steps in all); may raise `polyreel.errors.Cancelled`.
StepCallback = Callable[[int, int], None]

#: A diffusers pipeline. Any: the concrete classes are imported lazily and share no useful base for typing.
Pipeline = Any


class Family(Protocol):
    """One family of checkpoints that load and run in the same way.

    Attributes:
        name: what a catalogue entry's `family` says, e.g. "wan".
    """

    name: str

    def check(self, checkpoint: Path) -> None:
        """Look at a checkpoint folder without loading it, in well under a second.

        Raises:
            CheckpointUnavailable: `load` would not take it.
        """

    def load(self, checkpoint: Path, *, device: str, dtype: str) -> Pipeline:
        """Load a checkpoint folder in diffusers layout, tiny or real, without touching the network.

        Args:
            checkpoint: local folder with a `model_index.json`; safetensors only.
            device: "cpu", "cuda" or "cuda:N".
            dtype: "float32", "bfloat16" or "float16".

        Raises:
            CheckpointUnavailable: the folder is missing, incomplete, of another class, or holds pickles.
        """

    def generate(self, pipeline: Pipeline, requests: Sequence[VideoRequest], on_step: StepCallback) -> list[np.ndarray]:
        """Denoise `requests` into frames, one array per request in the same order.

        Args:
            pipeline: from `load`; used by one thread at a time.
            requests: share the model, size, frames and steps when there is more than one.
            on_step: called after every denoising step; may raise `Cancelled`, which ends the call at once
                and leaves the pipeline fit for the next one.

        Returns:
            uint8 arrays of exactly (num_frames, height, width, 3), RGB, whatever the family's own multiples.

        Raises:
            GenerationFailed: the pipeline raised or returned NaN; the cause is chained.
            Cancelled: from `on_step`.
        """


@cache
def families() -> dict[str, Family]:
    """Return every model family by name."""
    return discover("models", "FAMILY")
