"""`POST /v3/async/img2video`: its wire model, and what a body means.

The page is about Stable Video Diffusion, which is not served here: a model of the catalogue animates the picture
instead, without a prompt. `motion_bucket_id` is checked and has no effect.

Source: novita.ai/docs "Image to Video".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from polyreel.errors import InvalidRequest
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from server.dialects.novita.extras import Extra
from server.wire import Integer, Number, check_range, choose_seed

#: Frames of each model, which the page fixes.
_FRAMES = {"SVD": 14, "SVD-XT": 25}

#: The page: "currently, only the number 6 is supported".
_FPS = 6

#: `enable_frame_interpolation` delivers at this rate: that many frames for each, but the last.
_SMOOTH_FPS = 24

#: The longer and the shorter side that a video may have, pixels.
_LONG, _SHORT = 1024, 576


class ImageToVideo(BaseModel):
    """The request body; null means absent, unknown keys are ignored."""

    model_name: Literal["SVD", "SVD-XT"]
    image_file: str
    frames_num: Integer
    frames_per_second: Integer
    # The enumeration of the official Python client has ORIGINAL_DIMENSION for the page's ORIGINAL_RESOLUTION.
    image_file_resize_mode: Literal["ORIGINAL_RESOLUTION", "ORIGINAL_DIMENSION", "CROP_TO_ASPECT_RATIO"]
    steps: Integer
    seed: Integer | None = None
    motion_bucket_id: Integer | None = None
    cond_aug: Number | None = None
    enable_frame_interpolation: bool | None = None
    extra: Extra | None = None

    model_config = ConfigDict(protected_namespaces=())


#: field: (least, most); null is not checked
_RANGES: dict[str, tuple[float, float]] = {
    "frames_per_second": (_FPS, _FPS),
    "steps": (1, 50),
    "motion_bucket_id": (1, 255),
    "cond_aug": (0, 1),
}


def from_wire(wire: ImageToVideo, model: str, catalogue: Catalogue) -> VideoRequest:
    """Translate a body into the neutral request, but for its picture, which decides the size.

    Args:
        model: catalogue name of what runs this endpoint.

    Raises:
        InvalidRequest: names the field.
    """
    for field, (least, most) in _RANGES.items():
        if getattr(wire, field) is not None:
            check_range(field, getattr(wire, field), least, most)
    frames = _FRAMES[wire.model_name]
    if wire.frames_num != frames:
        raise InvalidRequest(f"frames_num must be {frames} for {wire.model_name}, got {wire.frames_num}", "frames_num")
    seed = choose_seed("seed", wire.seed)
    fps = _FPS
    if wire.enable_frame_interpolation:
        frames, fps = (frames - 1) * (_SMOOTH_FPS // _FPS) + 1, _SMOOTH_FPS
    return VideoRequest(
        model=model,
        prompts=(PromptSpan("", frames),),
        height=_SHORT,
        width=_LONG,
        fps=fps,
        num_inference_steps=wire.steps,
        guidance_scale=catalogue[model].defaults.guidance_scale,
        seed=seed,
        outputs=(OutputSpec((wire.extra or Extra()).response_video_type or "mp4", fps),),
    )


def strength(wire: ImageToVideo) -> float:
    """Return how strictly the first frame follows the picture: the page's noise on it, the other way round."""
    return 1.0 - (wire.cond_aug or 0.0)


def with_size_of(request: VideoRequest, width: int, height: int, mode: str) -> VideoRequest:
    """Return the request at the size that a picture makes it, lying or standing as the picture does.

    Args:
        width, height: of the picture, pixels.
        mode: `image_file_resize_mode`.
    """
    wide, tall = (_LONG, _SHORT) if width >= height else (_SHORT, _LONG)
    if mode != "CROP_TO_ASPECT_RATIO":
        scale = min(1.0, wide / width, tall / height)
        wide, tall = max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))
    return replace(request, height=tall, width=wide)
