"""`text2video`: the body, and the request that it means.

Sources: docs.modelslab.com "Text to Video" (OpenAPI) and the older page "Text to Video Endpoint".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from polyreel.request import OutputSpec, PromptSpan, Upscale, VideoRequest
from server.body import validate
from server.dialects.modelslab.fields import RANGES, Fields, choose_model, in_range, said_of, yes_no
from server.dialects.modelslab.meta import IMPROVED_SAMPLING_SEED, UPSCALE, meta_of, sent_by
from server.dialects.modelslab.settings import ModelsLabSettings
from server.snippets import WireCall, Wish, filled, given
from server.wire import Integer, Number, check_length, check_prompt, check_range, choose_seed


class TextToVideo(Fields):
    """The request body."""

    upscale_height: Integer | None = None
    upscale_width: Integer | None = None
    upscale_strength: Number | None = None
    upscale_guidance_scale: Number | None = None
    upscale_num_inference_steps: Integer | None = None
    use_improved_sampling: bool | None = None
    improved_sampling_seed: Integer | None = None


_RANGES = {
    **RANGES,
    "upscale_height": (MIN_SIDE, 1024, None),
    "upscale_width": (MIN_SIDE, 1024, None),
    "upscale_strength": (0, 1, UPSCALE["upscale_strength"]),
    # The schema says 0..8 with a default of 12, and the older page's own example sends 12: 20 lets both through.
    "upscale_guidance_scale": (0, 20, UPSCALE["upscale_guidance_scale"]),
    "upscale_num_inference_steps": (1, 50, UPSCALE["upscale_num_inference_steps"]),
}


def from_wire(
    wire: TextToVideo, catalogue: Catalogue, settings: ModelsLabSettings
) -> tuple[VideoRequest, dict[str, Any]]:
    """Translate a body into the neutral request, and the `meta` object that echoes what really runs.

    Raises:
        InvalidRequest: names the field.
    """
    prompt = check_prompt("prompt", wire.prompt)
    values = in_range(wire, _RANGES, settings)
    model, called = choose_model(wire.model_id, catalogue, settings)
    upscale = _upscale(values)
    improved_sampling_seed = choose_seed(
        "improved_sampling_seed",
        IMPROVED_SAMPLING_SEED if wire.improved_sampling_seed is None else wire.improved_sampling_seed,
    )
    # Like clip_skip, it is echoed and has no effect on models that have no such sampling.
    improves = bool(wire.use_improved_sampling) and "improved_sampling" in catalogue[model].tasks
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
        upscale=upscale,
        improved_sampling_seed=improved_sampling_seed if improves else None,
        outputs=(OutputSpec(wire.output_type or settings.default_output_type, values["fps"]),),
    )
    return request, {
        **meta_of(request, called),
        **sent_by(wire),
        **{name: values[name] for name in UPSCALE},
        "use_improved_sampling": yes_no(wire.use_improved_sampling),
        "improved_sampling_seed": improved_sampling_seed,
    }


def snippet(wish: Wish, catalogue: Catalogue, settings: ModelsLabSettings) -> WireCall:
    """Say a request without a picture in these words.

    Raises:
        Unsayable, InvalidRequest: there are no words for it, or it is out of range here.
    """
    r = wish.request
    upscale = r.upscale
    sides = {} if upscale is None else {f"upscale_{name}": getattr(upscale, name) for name in Upscale.__slots__}
    body = {
        **said_of(wish, catalogue),
        **given(
            **sides,
            use_improved_sampling=None if r.improved_sampling_seed is None else True,
            improved_sampling_seed=r.improved_sampling_seed,
        ),
    }
    means, _ = from_wire(validate(TextToVideo, filled(body)), catalogue, settings)
    return WireCall("/api/v6/video/text2video", body, means, headers={})


def _upscale(values: Mapping[str, Any]) -> Upscale | None:
    """Return the second pass: none when no size was sent; with one side, the other keeps the aspect.

    Raises:
        InvalidRequest: the kept aspect leads over the documented 1024 pixels.
    """
    height, width = values["upscale_height"], values["upscale_width"]
    if height is None and width is None:
        return None
    if height is None:
        height = _kept_side("upscale_height", width * values["height"] / values["width"])
    if width is None:
        width = _kept_side("upscale_width", height * values["width"] / values["height"])
    return Upscale(
        height=height,
        width=width,
        strength=values["upscale_strength"],
        guidance_scale=values["upscale_guidance_scale"],
        num_inference_steps=values["upscale_num_inference_steps"],
    )


def _kept_side(field: str, pixels: float) -> int:
    least, most, _ = _RANGES[field]
    check_range(field, round(pixels), least, most, ", as the aspect of the video asks; send both sides")
    return round(pixels)
