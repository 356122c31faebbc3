"""What a client asks for: the wire models of both tasks, and their translation into the neutral request."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, WithJsonSchema

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from server.body import validate
from server.dialects.huggingface.settings import HuggingFaceSettings
from server.snippets import WireCall, Wish, filled, given
from server.wire import Integer, Number, Prompts, check_length, check_limits, check_prompt, check_range, choose_seed

_MOST_FPS = 120
_MOST_GUIDANCE = 100


class Size(BaseModel):
    """The size of image-to-video's page, taken for text too."""

    width: Integer
    height: Integer


class Parameters(BaseModel):
    """The documented parameters; width, height and fps are ours. Unknown keys are ignored.

    Args:
        prompt: with a picture alone, whose place `inputs` takes.
        negative_prompt: text-to-video documents a list, image-to-video one text; both are taken for both.
    """

    prompt: str | None = None
    num_frames: Integer | None = None
    guidance_scale: Number | None = None
    negative_prompt: Prompts | None = None
    num_inference_steps: Integer | None = None
    seed: Integer | None = None
    width: Integer | None = None
    height: Integer | None = None
    fps: Number | None = None
    target_size: Size | None = None


class Options(BaseModel):
    """The older form of the headers `x-use-cache` and `x-wait-for-model`."""

    use_cache: bool | None = None
    wait_for_model: bool | None = None


#: An object is handed over before this body is read.
_OR_OBJECT = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]})


class Body(BaseModel):
    """The request body; null means absent.

    Args:
        inputs: the prompt, or a picture in base64.
    """

    inputs: Annotated[str | None, _OR_OBJECT] = None
    parameters: Parameters | None = None
    options: Options | None = None

    @property
    def is_seeded(self) -> bool:
        """Whether the client chose the seed."""
        return self.parameters is not None and self.parameters.seed not in (None, -1)


#: How refusals name fields, see `Catalogue.admit`.
WORDS = {"image": "inputs"} | {
    name: f"parameters.{name}" for name in ("num_frames", "height", "width", "num_inference_steps")
}


def from_wire(wire: Body, model: str, catalogue: Catalogue, *, has_picture: bool = False) -> VideoRequest:
    """Translate a body into the neutral request, but for its picture, which is to be stored first.

    What is not given comes from the catalogue entry.

    Args:
        model: catalogue name of the model in the path.
        has_picture: the prompt is in the parameters, and may be absent.

    Raises:
        InvalidRequest: names the field.
    """
    given, defaults = wire.parameters or Parameters(), catalogue[model].defaults
    prompt = check_length("parameters.prompt", given.prompt) if has_picture else check_prompt("inputs", wire.inputs)
    size = given.target_size or given
    num_frames = defaults.num_frames if given.num_frames is None else given.num_frames
    steps = defaults.num_inference_steps if given.num_inference_steps is None else given.num_inference_steps
    height = defaults.height if size.height is None else size.height
    width = defaults.width if size.width is None else size.width
    fps = defaults.fps if given.fps is None else given.fps
    guidance_scale = defaults.guidance_scale if given.guidance_scale is None else given.guidance_scale
    of_size = "parameters.target_size" if given.target_size else "parameters"
    check_limits(
        catalogue[model].limits,
        MIN_SIDE,
        num_frames=("parameters.num_frames", num_frames),
        height=(f"{of_size}.height", height),
        width=(f"{of_size}.width", width),
        num_inference_steps=("parameters.num_inference_steps", steps),
    )
    check_range("parameters.guidance_scale", guidance_scale, 0, _MOST_GUIDANCE)
    check_range("parameters.fps", fps, 1, _MOST_FPS)
    return VideoRequest(
        model=model,
        prompts=(PromptSpan(prompt, num_frames),),
        negative_prompt=check_length("parameters.negative_prompt", given.negative_prompt),
        height=height,
        width=width,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=choose_seed("parameters.seed", given.seed),
        outputs=(OutputSpec("mp4", fps),),
    )


def snippet(wish: Wish, catalogue: Catalogue, settings: HuggingFaceSettings) -> WireCall:
    """Say a request in these words; a picture takes the place of the prompt.

    Raises:
        Unsayable, InvalidRequest: there are no words for it, or it is out of range here.
    """
    r, picture = wish.request, wish.first_frame
    name = wish.name_in(catalogue, "huggingface")
    prompt = r.prompts[0].prompt
    body: dict[str, Any] = {  # Any: JSON and blanks
        "inputs": picture or prompt,
        "parameters": given(
            prompt=prompt or None if picture else None,
            negative_prompt=r.negative_prompt or None,
            num_frames=r.num_frames,
            height=r.height,
            width=r.width,
            fps=r.fps,
            num_inference_steps=r.num_inference_steps,
            guidance_scale=r.guidance_scale,
            seed=wish.seed,
        ),
    }
    means = from_wire(validate(Body, filled(body)), r.model, catalogue, has_picture=picture is not None)
    return WireCall(
        f"/models/{name}" + ("/pipeline/image-to-video" if picture else ""),
        body,
        wish.with_first_frame(means),
        saves_to="video.mp4",
    )


def may_use_cache(request: Request, wire: Body) -> bool:
    """Return whether an earlier video will do; a header says otherwise or, as it once did, the body."""
    options = wire.options or Options()
    return options.use_cache is not False and _flag(request, "x-use-cache") is not False


def wants_to_wait(request: Request, wire: Body) -> bool:
    """Return whether the client asks to be held while its model loads, in one of the three ways that there are."""
    options = wire.options or Options()
    return bool(options.wait_for_model or _flag(request, "x-wait-for-model") or SCALE_UP_TIMEOUT in request.headers)


#: Seconds for which a client of an Inference Endpoint asks to be held while that starts.
SCALE_UP_TIMEOUT = "x-scale-up-timeout"


def _flag(request: Request, header: str) -> bool | None:
    """Return a boolean header, None when it is absent or neither true nor false."""
    return {"true": True, "1": True, "false": False, "0": False}.get(request.headers.get(header, "").strip().lower())
