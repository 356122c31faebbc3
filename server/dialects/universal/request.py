"""What a client asks for: the card's fields, and their translation into the neutral request."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from polyreel.errors import InvalidRequest
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from server.body import validate
from server.dialects.universal.settings import UniversalSettings, endpoint_model
from server.snippets import Unsayable, WireCall, Wish, filled, given
from server.wire import Integer, Number, Prompts, check_length, check_limits, check_prompt, check_range, choose_seed

_FORMATS = ("gif", "webm", "zip")
_MULTIPLE = 32  # of height and width, pixels
_MOST_GUIDANCE = 100

#: A GIF frame lasts at least one centisecond; no other format of this endpoint is asked for more.
_MOST_FPS = 100


class Gif(BaseModel):
    """Options of the gif alone."""

    fps: Integer | None = None


class Webm(BaseModel):
    """Options of the webm alone."""

    fps: Integer | None = None
    quality: Literal["fast", "good", "best"] | None = None


class Inputs(BaseModel):
    """The card's fields; null means absent, unknown keys are ignored."""

    prompt: str | None = None
    image: str | None = None
    negative_prompt: Prompts | None = None
    num_frames: Integer | None = None
    fps: Integer | None = None
    height: Integer | None = None
    width: Integer | None = None
    seed: Integer | None = None
    num_inference_steps: Integer | None = None
    guidance_scale: Number | None = None
    outputs: Annotated[list[str], Field(fail_fast=True)] | None = None  # only the first wrong item is told
    return_base64: bool | None = None
    gif: Gif | None = None
    webm: Webm | None = None


class UniversalBody(BaseModel):
    """The request body."""

    inputs: Inputs


#: The card's defaults.
_DEFAULTS: dict[str, Any] = {  # Any: each field's own type
    "num_frames": 32,
    "fps": 12,
    "height": 512,
    "width": 512,
    "num_inference_steps": 30,
    "guidance_scale": 7.5,
}

#: How refusals name fields, see `Catalogue.admit`.
WORDS = {name: f"inputs.{name}" for name in ("image", "num_frames", "height", "width", "num_inference_steps")}


def from_wire(wire: UniversalBody, model: str, catalogue: Catalogue) -> VideoRequest:
    """Translate a body into the neutral request, but for its picture, which is to be stored first.

    Args:
        model: catalogue name of the endpoint's model; it limits the request.

    Raises:
        InvalidRequest: names the field.
    """
    given = wire.inputs
    prompt = check_prompt("inputs.prompt", given.prompt)
    values = {
        field: default if getattr(given, field) is None else getattr(given, field)
        for field, default in _DEFAULTS.items()
    }
    check_limits(
        catalogue[model].limits,
        MIN_SIDE,
        **{
            field: (f"inputs.{field}", values[field])
            for field in ("num_frames", "height", "width", "num_inference_steps")
        },
    )
    for side in ("height", "width"):
        _check_multiple(f"inputs.{side}", values[side])
    check_range("inputs.guidance_scale", values["guidance_scale"], 0, _MOST_GUIDANCE)
    check_range("inputs.fps", values["fps"], 1, _MOST_FPS)
    return VideoRequest(
        model=model,
        prompts=(PromptSpan(prompt, values["num_frames"]),),
        negative_prompt=check_length("inputs.negative_prompt", given.negative_prompt),
        height=values["height"],
        width=values["width"],
        fps=values["fps"],
        num_inference_steps=values["num_inference_steps"],
        guidance_scale=values["guidance_scale"],
        seed=choose_seed("inputs.seed", given.seed),
        outputs=_outputs(given, values["fps"]),
    )


def snippet(wish: Wish, catalogue: Catalogue, settings: UniversalSettings) -> WireCall:
    """Say a request in these words; of other formats than the endpoint has, it makes a gif.

    Raises:
        Unsayable, InvalidRequest: there are no words for it, or it is out of range here.
    """
    r = wish.request
    if not catalogue.public_names("universal") or endpoint_model(catalogue, settings) != r.model:
        raise Unsayable(
            f"model: this endpoint has one, which is not {r.model} (setting dialects.universal.endpoint_model)"
        )
    specs = {spec.format: spec for spec in r.outputs if spec.format in _FORMATS}
    own = {name: specs[name].fps for name in ("gif", "webm") if name in specs and specs[name].fps != r.fps}
    webm = given(fps=own.get("webm"), quality=specs["webm"].quality) if "webm" in specs else None
    body = {
        "inputs": given(
            prompt=r.prompts[0].prompt,
            image=wish.first_frame,
            negative_prompt=r.negative_prompt or None,
            num_frames=r.num_frames,
            fps=r.fps,
            height=r.height,
            width=r.width,
            seed=wish.seed,
            num_inference_steps=r.num_inference_steps,
            guidance_scale=r.guidance_scale,
            outputs=list(specs) or ["gif"],
            gif=given(fps=own["gif"]) if "gif" in own else None,
            webm=webm,
        )
    }
    means = from_wire(validate(UniversalBody, filled(body)), r.model, catalogue)
    return WireCall("/", body, wish.with_first_frame(means))


def _check_multiple(field: str, pixels: int) -> None:
    if pixels % _MULTIPLE:
        nearest = round(pixels / _MULTIPLE) * _MULTIPLE
        raise InvalidRequest(f"{field} must be divisible by {_MULTIPLE}, got {pixels}; nearest: {nearest}", field)


def _outputs(given: Inputs, fps: int) -> tuple[OutputSpec, ...]:
    """Return the files to make, each once, in the order in which they were named."""
    names = list(dict.fromkeys(["gif"] if given.outputs is None else given.outputs))
    if not names:
        raise InvalidRequest(
            'inputs.outputs must name at least one of "gif", "webm", "zip", got an empty list', "inputs.outputs"
        )
    for name in names:
        if name not in _FORMATS:
            raise InvalidRequest(
                f'inputs.outputs must hold only "gif", "webm", "zip", got {json.dumps(name[:40])}', "inputs.outputs"
            )
    gif, webm = given.gif or Gif(), given.webm or Webm()
    own_fps = {"gif": gif.fps, "webm": webm.fps}
    for name, value in own_fps.items():
        if value is not None:
            check_range(f"inputs.{name}.fps", value, 1, _MOST_FPS)
    quality = webm.quality or "good"
    return tuple(OutputSpec(name, own_fps.get(name) or fps, quality if name == "webm" else "good") for name in names)
