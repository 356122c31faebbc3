"""Which waiting jobs may share one call of a pipeline, and how many of them at most.

The model families decide the same of the requests in a worker's hands (`models._run.split`); a test holds the two
together. What a batch gains on one machine is measured by `polyreel bench batch`; see docs/batching.md.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from polyreel.request import VideoRequest

#: For one model, what was measured: pairs (pixels of a job, most jobs in one call), in rising order of pixels.
SizedBatches = tuple[tuple[int, int], ...]


def batch_key(request: VideoRequest) -> str:
    """Return what two requests must have in common to share a pipeline call; "" for one that must run alone.

    Equal keys mean: equal but for the texts of prompt and negative prompt, the seed, and the files that are made of
    the frames. diffusers cannot batch pictures (one sample's picture would condition all), embeddings are part of the
    prompts' own encoder, and the other kinds below are several calls for one video.

    Returns:
        16 hexadecimal digits, the same in every process and on every machine.
    """
    several_calls = request.closed_loop or request.upscale or request.improved_sampling_seed is not None
    if several_calls or request.images or request.embeddings or len(request.prompts) != 1:
        return ""
    # Whatever a request will be able to say one day counts as well until somebody leaves it out here.
    shared = replace(
        request, prompts=(replace(request.prompts[0], prompt=""),), negative_prompt="", seed=0, outputs=()
    ).to_dict()
    return hashlib.sha256(json.dumps(_as_floats(shared), sort_keys=True).encode()).hexdigest()[:16]


def _as_floats(value: Any) -> Any:
    """Return JSON values with every number as a float: 5 and 5.0 are one guidance scale, whichever dialect wrote it."""
    if isinstance(value, dict):
        return {key: _as_floats(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_floats(one) for one in value]
    return float(value) + 0.0 if isinstance(value, int | float) else value  # -0.0 + 0.0 is 0.0


def job_pixels(request: VideoRequest) -> int:
    """Return num_frames * height * width of a job: what batches are measured over."""
    return request.num_frames * request.height * request.width


def batch_limit(sizes: SizedBatches, pixels: int) -> int:
    """Return how many jobs of `pixels` may share a call: 1 or more.

    The rule, which the claim repeats in Lua: go through the measured sizes from the smallest; the first one with at
    least as many pixels as the job decides. Where none is that large, or nothing was measured, a job runs alone. So a
    job never shares with more than a larger one could, and nobody guesses beyond what was measured.
    """
    return next((batch_size for measured, batch_size in sizes if measured >= pixels), 1)
