"""`meta`: every parameter that a video really runs with, in the vendor's words.

The same keys in every answer, whichever route or dialect the job came by. Source: the older page's example response,
and what answers of 2025 hold beside it (base64, watermark, webhook, track_id, id).
"""

from __future__ import annotations

from typing import Any

from polyreel.records import StoredJob
from polyreel.request import VideoRequest
from server.dialects.modelslab.fields import Fields, yes_no

#: What the second pass would run with; told also where there is none, as in the page's example.
UPSCALE: dict[str, float] = {
    "upscale_strength": 0.6,
    "upscale_guidance_scale": 12,
    "upscale_num_inference_steps": 20,
}

#: Of the noise of improved sampling; in no table of the pages, and in all their answers.
IMPROVED_SAMPLING_SEED = 42


def meta_of(request: VideoRequest, called: str) -> dict[str, Any]:
    """Return what a request alone tells. Any: JSON.

    Args:
        called: the model, as its client named it.
    """
    upscale, improved_sampling_seed = request.upscale, request.improved_sampling_seed
    return {
        "prompt": request.prompts[0].prompt,
        "negative_prompt": request.negative_prompt,
        "model_id": called,
        "height": request.height,
        "width": request.width,
        "num_frames": request.num_frames,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "clip_skip": request.clip_skip,
        "fps": request.fps,
        "seed": request.seed,
        "output_type": request.outputs[0].format,
        "upscale_height": upscale.height if upscale else None,
        "upscale_width": upscale.width if upscale else None,
        "upscale_strength": upscale.strength if upscale else UPSCALE["upscale_strength"],
        "upscale_guidance_scale": upscale.guidance_scale if upscale else UPSCALE["upscale_guidance_scale"],
        "upscale_num_inference_steps": (
            upscale.num_inference_steps if upscale else UPSCALE["upscale_num_inference_steps"]
        ),
        "use_improved_sampling": yes_no(improved_sampling_seed is not None),
        "improved_sampling_seed": IMPROVED_SAMPLING_SEED if improved_sampling_seed is None else improved_sampling_seed,
        "instant_response": "no",
        "temp": "no",
        "base64": "no",
        "watermark": "no",
        "webhook": None,
        "track_id": None,
    }


def sent_by(wire: Fields) -> dict[str, Any]:
    """Return what only the body tells. Any: JSON. The key is never part of it."""
    return {
        "negative_prompt": wire.negative_prompt,
        "instant_response": yes_no(wire.instant_response),
        "temp": yes_no(wire.temp),
        "webhook": wire.webhook or None,
        "track_id": wire.track_id,
    }


def meta(stored: StoredJob) -> dict[str, Any]:
    """Return the `meta` of a record; of a job that was made in another dialect, what its request tells. Any: JSON."""
    job = stored.job
    told = job.vendor.get("meta") or meta_of(job.request, job.request.model)
    return {**told, "id": stored.number, "file_prefix": job.id}
