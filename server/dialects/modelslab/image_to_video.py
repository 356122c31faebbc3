"""`img2video`: the body, and the request that it means but for its picture, which is to be fetched first.

Sources: docs.modelslab.com "Image to Video" (OpenAPI), its older page and its enterprise page. They were written for
Stable Video Diffusion (SVD) and name its parameters ("when using svd as the model"); the models that the first one
says are served today, wan2.2 and ltx-2.3, have none of them.
"""

from __future__ import annotations

from typing import Any

from polyreel.catalogue import Catalogue
from polyreel.errors import InvalidRequest
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from server.body import validate
from server.dialects.modelslab.fields import RANGES, Fields, choose_model, in_range, said_of, yes_no
from server.dialects.modelslab.meta import meta_of, sent_by
from server.dialects.modelslab.settings import ModelsLabSettings
from server.pictures import is_link
from server.snippets import WireCall, Wish, filled
from server.wire import Integer, Number, check_length, choose_seed

_MOTION_BUCKET_ID = 127


class ImageToVideo(Fields):
    """The request body. `seed` and `guidance_scale` are in no table of these pages, and the official SDK sends both."""

    init_image: str | None = None
    min_guidance_scale: Number | None = None
    max_guidance_scale: Number | None = None
    motion_bucket_id: Integer | None = None
    noise_aug_strength: Number | None = None
    base64: bool | None = None


#: Those of SVD have no effect, so the widest of the pages' ranges will do.
_SVD_RANGES = {
    "min_guidance_scale": (0, 8, 1),
    "max_guidance_scale": (0, 8, 3),
    "noise_aug_strength": (0, 1, None),
}

_RANGES = {**RANGES, "num_frames": (1, 25, 16), **_SVD_RANGES}


def from_wire(
    wire: ImageToVideo, catalogue: Catalogue, settings: ModelsLabSettings
) -> tuple[VideoRequest, dict[str, Any]]:
    """Translate a body into the neutral request without its picture, and the `meta` object.

    Raises:
        InvalidRequest: names the field.
    """
    if not (wire.init_image or "").strip():
        raise InvalidRequest("init_image is required", "init_image")
    prompt = check_length("prompt", wire.prompt)  # a picture says enough
    values = in_range(wire, _RANGES, settings)
    model, called = choose_model(wire.model_id, catalogue, settings)
    request = VideoRequest(
        model=model,
        prompts=(PromptSpan(prompt, values["num_frames"]),),
        negative_prompt=check_length("negative_prompt", wire.negative_prompt),
        height=values["height"],
        width=values["width"],
        fps=values["fps"],
        num_inference_steps=values["num_inference_steps"],
        guidance_scale=values["guidance_scale"],
        seed=choose_seed("seed", wire.seed),
        clip_skip=values["clip_skip"],
        outputs=(OutputSpec(wire.output_type or settings.default_output_type, values["fps"]),),
    )
    return request, {
        **meta_of(request, called),
        **sent_by(wire),
        "prompt": wire.prompt,
        # Base64 would repeat megabytes in every answer.
        "init_image": wire.init_image if is_link(wire.init_image or "") else None,
        "base64": yes_no(wire.base64),
        **{name: values[name] for name in _SVD_RANGES},
        "motion_bucket_id": _MOTION_BUCKET_ID if wire.motion_bucket_id is None else wire.motion_bucket_id,
    }


def snippet(wish: Wish, catalogue: Catalogue, settings: ModelsLabSettings) -> WireCall:
    """Say a request with a picture for its first frame in these words.

    Raises:
        Unsayable, InvalidRequest: there are no words for it, or it is out of range here.
    """
    body = {**said_of(wish, catalogue), "init_image": wish.first_frame}
    means, _ = from_wire(validate(ImageToVideo, filled(body)), catalogue, settings)
    return WireCall("/api/v6/video/img2video", body, wish.with_first_frame(means), headers={})
