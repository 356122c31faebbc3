"""`POST /v3/async/wan-t2v` and `/v3/async/wan-i2v`: their wire models, and what a body means.

Sources: novita.ai/docs "Wan 2.1 Text to Video" and "Wan 2.1 Image to Video". `model_name`, which older clients send,
`enable_safety_checker` and `fast_mode` mean nothing here and are not named below.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, Field

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from polyreel.errors import InvalidRequest, UnknownModel
from polyreel.request import AdapterUse, OutputSpec, PromptSpan, VideoRequest
from server.dialects.novita.extras import Extra
from server.dialects.novita.settings import NovitaSettings
from server.wire import Integer, Number, check_length, check_limits, check_prompt, check_range, choose_seed

_LONGEST_PROMPT = 2000  # characters, also of the negative one
_MOST_SEED = 9_999_999_999

#: (width, height) of the sizes that may be asked for; without one of the two it is the first.
_SIZES = ((832, 480), (480, 832), (1280, 720), (720, 1280))

#: A video that keeps its picture's aspect has sides of this multiple, pixels: the VAE's 8 times the patch of 2.
_MULTIPLE = 16


class WanLora(BaseModel):
    """A LoRA of the catalogue, by its Novita name or its repository on the hub, and how much of it."""

    path: str
    scale: Number


class WanTextToVideo(BaseModel):
    """The request body; null means absent, unknown keys are ignored."""

    prompt: str | None = None
    negative_prompt: str | None = None
    width: Integer | None = None
    height: Integer | None = None
    loras: Annotated[list[WanLora], Field(max_length=3, fail_fast=True)] | None = None
    seed: Integer | None = None
    steps: Integer | None = None
    guidance_scale: Number | None = None
    flow_shift: Number | None = None
    extra: Extra | None = None


class WanImageToVideo(WanTextToVideo):
    """The same, and the picture."""

    image_url: str


#: field: (least, most, value when absent)
_RANGES: dict[str, tuple[float, float, float]] = {
    "steps": (1, 40, 30),
    "guidance_scale": (0, 10, 5.0),
    "flow_shift": (1, 10, 5.0),
}


def from_wire(wire: WanTextToVideo, model: str, catalogue: Catalogue, settings: NovitaSettings) -> VideoRequest:
    """Translate a body into the neutral request, but for its picture.

    Args:
        model: catalogue name of what runs this endpoint.

    Raises:
        InvalidRequest: names the field.
        UnknownModel: no such LoRA.
    """
    prompt = check_prompt("prompt", wire.prompt)
    check_length("prompt", prompt, _LONGEST_PROMPT)
    check_length("negative_prompt", wire.negative_prompt, _LONGEST_PROMPT)
    values = {}
    for field, (least, most, default) in _RANGES.items():
        given = getattr(wire, field)
        values[field] = default if given is None else given
        check_range(field, values[field], least, most)
    if wire.seed is not None:
        check_range("seed", wire.seed, -1, _MOST_SEED)
    width, height = _size(wire)
    limits = catalogue[model].limits
    check_limits(
        limits,
        MIN_SIDE,
        height=("height", height),
        width=("width", width),
        num_inference_steps=("steps", values["steps"]),
    )
    num_frames = min(settings.wan_num_frames, limits.num_frames)
    file_format = (wire.extra or Extra()).response_video_type or "mp4"
    return VideoRequest(
        model=model,
        prompts=(PromptSpan(prompt, num_frames),),
        negative_prompt=wire.negative_prompt or "",
        height=height,
        width=width,
        fps=settings.wan_fps,
        num_inference_steps=int(values["steps"]),
        guidance_scale=values["guidance_scale"],
        flow_shift=float(values["flow_shift"]),
        seed=choose_seed("seed", wire.seed),
        loras=_loras(wire.loras or [], catalogue, model),
        outputs=(OutputSpec(file_format, settings.wan_fps),),
    )


def _size(wire: WanTextToVideo) -> tuple[int, int]:
    """Return width and height; as the page says, both are the default when one is missing."""
    if wire.width is None or wire.height is None:
        return _SIZES[0]
    size = (wire.width, wire.height)
    if size not in _SIZES:
        known = ", ".join(f"{width}x{height}" for width, height in _SIZES)
        raise InvalidRequest(f"width and height must be one of {known}, got {wire.width}x{wire.height}", "width")
    return size


def with_aspect_of(request: VideoRequest, width: int, height: int, most: int) -> VideoRequest:
    """Return the request at the size that keeps a picture's aspect and about the pixels that were asked for.

    Args:
        width, height: of the picture.
        most: longest side that the model allows, pixels; a picture that is longer still makes a smaller video.

    Source: the page ("the output keeps the aspect of the input; width x height only decide how sharp it is"), and how
    diffusers' manual computes the size for Wan's image to video.
    """
    pixels, aspect = request.width * request.height, height / width
    tall, wide = math.sqrt(pixels * aspect), math.sqrt(pixels / aspect)
    scale = min(1.0, most / max(tall, wide))
    height, width = (max(MIN_SIDE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in (tall, wide))
    return replace(request, height=height, width=width)


def _loras(loras: list[WanLora], catalogue: Catalogue, model: str) -> tuple[AdapterUse, ...]:
    uses: dict[str, AdapterUse] = {}
    for i, lora in enumerate(loras):
        check_range(f"loras.{i}.scale", lora.scale, 0, 4)
        name = _lora(lora.path, catalogue, model)
        if name in uses:
            raise InvalidRequest(f"loras.{i}.path: {lora.path[:200]} comes twice; send it once", "loras")
        uses[name] = AdapterUse(name, lora.scale)
    return tuple(uses.values())


def _lora(path: str, catalogue: Catalogue, model: str) -> str:
    """Return the catalogue name of a LoRA that was called by its public name, or by where it lies on the hub.

    Raises:
        UnknownModel: names those that fit; nothing is downloaded on a client's word.
    """
    for name, adapter in catalogue.loras.items():
        if model in adapter.models and path in (adapter.checkpoint, adapter.checkpoint.rpartition("/")[0]):
            return name
    try:
        return catalogue.resolve_lora("novita", path, model)
    except UnknownModel as err:
        of_hub = [one.checkpoint for one in catalogue.loras.values() if model in one.models and "/" in one.checkpoint]
        raise UnknownModel(path, [*err.served, *of_hub], kind="LoRA") from None
