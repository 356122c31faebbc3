"""Fields that every submit has, and what is done with values outside of their documented ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from server.dialects.modelslab.settings import ModelsLabSettings
from server.snippets import KEY, Blank, Wish, given
from server.wire import Integer, Number, check_range

#: Longest track_id, characters: every answer repeats it.
_LONGEST_ID = 1000


def _text_or_integer(value: object) -> object:
    if value is None:
        return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise PydanticCustomError("text_or_integer_expected", "must be a string or an integer")
    if len(str(value)) > _LONGEST_ID:
        raise PydanticCustomError("text_too_long", "must be at most 1000 characters")
    return value


class Fields(BaseModel):
    """What all request bodies share; null means absent, unknown keys are ignored. Ranges are checked apart."""

    key: str | None = None
    prompt: str | None = None
    model_id: str | None = None
    negative_prompt: str | None = None
    seed: Integer | None = None
    height: Integer | None = None
    width: Integer | None = None
    num_frames: Integer | None = None
    num_inference_steps: Integer | None = None
    guidance_scale: Number | None = None
    clip_skip: Integer | None = None
    fps: Integer | None = None
    output_type: Literal["mp4", "gif"] | None = None
    instant_response: bool | None = None
    temp: bool | None = None
    webhook: str | None = None
    # The schema says string, the enterprise pages integer: whatever comes is told again as it came.
    track_id: Annotated[str | int | None, BeforeValidator(_text_or_integer)] = None

    model_config = ConfigDict(protected_namespaces=())


#: Of fields: (least, most, value when absent).
Ranges = Mapping[str, tuple[float, float, float | None]]

#: Of the shared fields. No page names a least side; 64 keeps the models working.
RANGES: Ranges = {
    "height": (MIN_SIDE, 512, 512),
    "width": (MIN_SIDE, 512, 512),
    "num_frames": (1, 25, 25),
    "num_inference_steps": (1, 50, 20),
    "guidance_scale": (0, 8, 7),
    "clip_skip": (0, 2, None),
    "fps": (1, 16, 7),
}


def in_range(wire: Fields, ranges: Ranges, settings: ModelsLabSettings) -> dict[str, Any]:
    """Return the ranged fields with their defaults filled in. Any: ints and floats as the client sent them.

    Raises:
        InvalidRequest: names the field, unless `out_of_range` says clamp.
    """
    values: dict[str, Any] = {}
    for field, (least, most, default) in ranges.items():
        value = getattr(wire, field)
        if value is None:
            value = default
        elif settings.out_of_range == "clamp":
            value = min(max(value, least), most)
        else:
            check_range(field, value, least, most, " (setting dialects.modelslab.out_of_range: clamp would adjust it)")
        values[field] = int(value) if value is not None and value == int(value) else value
    return values


def choose_model(model_id: str | None, catalogue: Catalogue, settings: ModelsLabSettings) -> tuple[str, str]:
    """Return the catalogue name that runs and the name that is answered: an unknown one is never an error.

    Source: "Any other models passed will be ignored and defauted to `wan2.2`" (sic), the OpenAPI page.
    """
    known = catalogue.find("modelslab", model_id) if model_id else None
    if model_id and known:
        return known, model_id
    return catalogue.resolve("modelslab", settings.default_model), settings.default_model


def said_of(wish: Wish, catalogue: Catalogue) -> dict[str, Any]:
    """Return the shared fields that say a request. Any: JSON, with a blank for the key.

    Raises:
        Unsayable: its model has no name here.
    """
    r = wish.request
    kinds = [spec.format for spec in r.outputs if spec.format in ("mp4", "gif")]
    return given(
        key=Blank(KEY),
        model_id=wish.name_in(catalogue, "modelslab"),
        prompt=r.prompts[0].prompt,
        negative_prompt=r.negative_prompt or None,
        height=r.height,
        width=r.width,
        num_frames=r.num_frames,
        num_inference_steps=r.num_inference_steps,
        guidance_scale=r.guidance_scale,
        fps=r.fps,
        seed=wish.seed,
        clip_skip=r.clip_skip,
        output_type=kinds[0] if kinds else "mp4",
        webhook=wish.webhook,
    )


def yes_no(value: object) -> str:
    """Return a boolean as answers spell it."""
    return "yes" if value else "no"
