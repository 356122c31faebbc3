"""What Hugging Face's clients send with the provider "novita": `/v3/hf/{model}` and `/v3/async/{model}`.

The Python client waits in one call; the JavaScript client submits and polls task-result. Both send the parameters of
Hugging Face's task page beside the prompt, flat. Neither route is in Novita's own documents.

Source: huggingface_hub 2.4.0 and @huggingface/inference 4.13.30, `providers/novita`.
"""

from __future__ import annotations

from pydantic import BaseModel
from starlette.convertors import StringConvertor, register_url_convertor

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from polyreel.errors import UnknownRoute
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from server.body import validate
from server.snippets import Unsayable, WireCall, Wish, filled, given
from server.wire import Integer, Number, Prompts, check_length, check_limits, check_prompt, check_range, choose_seed

_MOST_FPS = 120
_MOST_GUIDANCE = 100


class _ProviderModel(StringConvertor):
    """A model's public name in a path, which may have slashes; other methods of task-result are not such a name."""

    regex = r"(?!task-result/?$).+"


register_url_convertor("provider_model", _ProviderModel())


class ProviderBody(BaseModel):
    """The request body; null means absent, unknown keys are ignored. `steps` is the JavaScript client's word."""

    prompt: str | None = None
    negative_prompt: Prompts | None = None
    num_frames: Integer | None = None
    num_inference_steps: Integer | None = None
    steps: Integer | None = None
    guidance_scale: Number | None = None
    seed: Integer | None = None
    width: Integer | None = None
    height: Integer | None = None
    fps: Number | None = None


class VideoUrl(BaseModel):
    """Where the video is."""

    video_url: str


class ProviderAnswer(BaseModel):
    """What the Python client reads."""

    video: VideoUrl


def model_named(catalogue: Catalogue, name: str) -> str:
    """Return the entry that a name in the path means.

    Users map models of the hub to names of the provider by themselves, so both kinds of names are taken.

    Raises:
        UnknownRoute: no entry has this name.
    """
    found = catalogue.find("novita", name) or catalogue.find("huggingface", name)
    if found is None:
        raise UnknownRoute(f"There is no API and no model called {name[:100]}.")
    return found


def from_wire(wire: ProviderBody, model: str, catalogue: Catalogue) -> VideoRequest:
    """Translate a body into the neutral request; what is not given comes from the catalogue entry.

    Raises:
        InvalidRequest: names the field.
    """
    prompt, entry = check_prompt("prompt", wire.prompt), catalogue[model]
    defaults = entry.defaults
    steps_field = "steps" if wire.num_inference_steps is None else "num_inference_steps"
    steps = wire.steps if wire.num_inference_steps is None else wire.num_inference_steps
    steps = defaults.num_inference_steps if steps is None else steps
    num_frames = defaults.num_frames if wire.num_frames is None else wire.num_frames
    height = defaults.height if wire.height is None else wire.height
    width = defaults.width if wire.width is None else wire.width
    fps = defaults.fps if wire.fps is None else wire.fps
    guidance_scale = defaults.guidance_scale if wire.guidance_scale is None else wire.guidance_scale
    check_limits(
        entry.limits,
        MIN_SIDE,
        num_frames=("num_frames", num_frames),
        height=("height", height),
        width=("width", width),
        num_inference_steps=(steps_field, steps),
    )
    check_range("guidance_scale", guidance_scale, 0, _MOST_GUIDANCE)
    check_range("fps", fps, 1, _MOST_FPS)
    return VideoRequest(
        model=model,
        prompts=(PromptSpan(prompt, num_frames),),
        negative_prompt=check_length("negative_prompt", wire.negative_prompt),
        height=height,
        width=width,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=choose_seed("seed", wire.seed),
        outputs=(OutputSpec("mp4", fps),),
    )


def snippet(wish: Wish, catalogue: Catalogue) -> WireCall:
    """Say a request in the words of Hugging Face's provider "novita", for models that have its names alone.

    Raises:
        Unsayable, InvalidRequest: there are no words for it, or it is out of range here.
    """
    r = wish.request
    names = catalogue[r.model].names.get("huggingface")
    if not names:
        raise Unsayable(f"model: {r.model} has no name in this API (setting models.{r.model}.names.novita)")
    body = given(
        prompt=r.prompts[0].prompt,
        negative_prompt=r.negative_prompt or None,
        num_frames=r.num_frames,
        height=r.height,
        width=r.width,
        fps=r.fps,
        num_inference_steps=r.num_inference_steps,
        guidance_scale=r.guidance_scale,
        seed=wish.seed,
    )
    return WireCall(f"/v3/async/{names[0]}", body, from_wire(validate(ProviderBody, filled(body)), r.model, catalogue))
