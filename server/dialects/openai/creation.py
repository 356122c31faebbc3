"""What `POST /v1/videos` reads, and the neutral request that it means."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE, ServedModel
from polyreel.errors import ConfigurationError, InvalidRequest, UnknownModel, did_you_mean
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from server.body import validate
from server.snippets import Blank, WireCall, Wish, filled, given
from server.wire import MAX_PROMPT, Integer, Number, check_length, check_limits, check_prompt, check_range, choose_seed

_SIZE = re.compile(r"(?P<width>\d{1,5})x(?P<height>\d{1,5})")
_MOST_FPS = 60
_MOST_GUIDANCE = 100

#: Variant of `/content`: format. All three are made of the same frames when the video is.
VARIANTS = {"video": "mp4", "thumbnail": "thumbnail", "spritesheet": "spritesheet"}


class OpenAISettings(BaseModel):
    """What the operator chooses.

    Args:
        default_model: what runs when the client names no model, a public name or a catalogue name; None takes the
            first entry that has a name in this dialect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    default_model: str | None = None


#: Checked apart, for its messages; OpenAPI is told here what the check wants.
Prompt = Annotated[str | None, Field(json_schema_extra={"minLength": 1, "maxLength": MAX_PROMPT, "pattern": r"\S"})]
NEEDS_PROMPT = ConfigDict(json_schema_extra={"required": ["prompt"]})


class ImageReference(BaseModel):
    """A picture by its address; OpenAI's uploaded files do not exist here."""

    image_url: str | None = None
    file_id: str | None = None


def _as_object(value: object) -> object:
    """Take a text for the address itself: forms have no objects, and some clients send it so in JSON too."""
    return {"image_url": value} if isinstance(value, str) else value


class CreateVideo(BaseModel):
    """The request body, JSON or a form; null means absent, unknown keys are ignored.

    The first five are OpenAI's, the rest are those of vLLM-Omni that mean something here.
    """

    model_config = NEEDS_PROMPT
    prompt: Prompt = None
    model: str | None = None
    seconds: Number | None = None
    size: str | None = None
    input_reference: Annotated[ImageReference, BeforeValidator(_as_object)] | None = None
    width: Integer | None = None
    height: Integer | None = None
    num_frames: Integer | None = None
    fps: Number | None = None
    num_inference_steps: Integer | None = None
    guidance_scale: Number | None = None
    negative_prompt: str | None = None
    seed: Integer | None = None


def from_wire(wire: CreateVideo, catalogue: Catalogue, settings: OpenAISettings) -> VideoRequest:
    """Translate a body into the neutral request, but for its picture.

    Raises:
        InvalidRequest: names the field.
        UnknownModel: no entry answers to the name.
    """
    prompt = check_prompt("prompt", wire.prompt)
    model = resolve(catalogue, wire.model) if wire.model else _default_model(catalogue, settings)
    entry = catalogue[model]
    values = _values(wire, entry)
    width, height = _size(wire, entry)
    num_frames = _num_frames(wire, entry, values["fps"])
    check_limits(
        entry.limits,
        MIN_SIDE,
        num_frames=("num_frames", num_frames),
        num_inference_steps=("num_inference_steps", values["num_inference_steps"]),
    )
    return VideoRequest(
        model=model,
        prompts=(PromptSpan(prompt, num_frames),),
        negative_prompt=check_length("negative_prompt", wire.negative_prompt),
        height=height,
        width=width,
        fps=values["fps"],
        num_inference_steps=values["num_inference_steps"],
        guidance_scale=values["guidance_scale"],
        seed=choose_seed("seed", wire.seed),
        outputs=outputs(values["fps"]),
    )


def snippet(wish: Wish, catalogue: Catalogue, settings: OpenAISettings) -> WireCall:
    """Say a request in these words.

    Raises:
        InvalidRequest: it is out of range here.
    """
    r, picture = wish.request, wish.first_frame
    if isinstance(picture, Blank):
        picture = Blank(picture.name, "data:image/png;base64,")
    body = given(
        model=next(iter(catalogue[r.model].names.get("openai", ())), r.model),
        prompt=r.prompts[0].prompt,
        seconds=_brief(r.num_frames / r.fps),
        size=f"{r.width}x{r.height}",
        fps=r.fps,
        num_inference_steps=r.num_inference_steps,
        guidance_scale=r.guidance_scale,
        negative_prompt=r.negative_prompt or None,
        seed=wish.seed,
        input_reference={"image_url": picture} if picture else None,
    )
    means = from_wire(validate(CreateVideo, filled(body)), catalogue, settings)
    return WireCall("/v1/videos", body, wish.with_first_frame(means))


def outputs(fps: float) -> tuple[OutputSpec, ...]:
    """Return the files that a video of this dialect has, in the order of `VARIANTS`."""
    return tuple(OutputSpec(name, fps) for name in VARIANTS.values())


def _values(wire: CreateVideo, entry: ServedModel) -> dict[str, Any]:
    """Return the plain numbers, what was omitted from the entry's defaults. Any: each field's own type."""
    values = {}
    for name in ("fps", "num_inference_steps", "guidance_scale"):
        given = getattr(wire, name)
        values[name] = getattr(entry.defaults, name) if given is None else given
    check_range("fps", values["fps"], 1, _MOST_FPS)
    check_range("guidance_scale", values["guidance_scale"], 0, _MOST_GUIDANCE)
    return values


def _num_frames(wire: CreateVideo, entry: ServedModel, fps: float) -> int:
    """Return the number of frames: the given one, else that of `seconds`, else the entry's."""
    if wire.num_frames is not None or wire.seconds is None:
        return entry.defaults.num_frames if wire.num_frames is None else wire.num_frames
    most = entry.limits.num_frames / fps
    num_frames = round(max(0.0, min(wire.seconds, most + 1)) * fps)
    if not 1 <= num_frames <= entry.limits.num_frames:
        raise InvalidRequest(
            f"seconds must be between {_brief(1 / fps)} and {_brief(most)} for this model "
            f"({entry.limits.num_frames} frames at {_brief(fps)} frames per second), got {_brief(wire.seconds)}; "
            "a lower fps makes a longer video",
            "seconds",
        )
    return num_frames


def _size(wire: CreateVideo, entry: ServedModel) -> tuple[int, int]:
    """Return width and height in pixels."""
    if wire.size is None:
        sides = {"width": wire.width, "height": wire.height}
        given = {name: getattr(entry.defaults, name) if side is None else side for name, side in sides.items()}
        check_limits(entry.limits, MIN_SIDE, **{name: (name, side) for name, side in given.items()})
        return given["width"], given["height"]
    if wire.width is not None or wire.height is not None:
        raise InvalidRequest("size comes beside width or height; send one of the two", "size")
    match = _SIZE.fullmatch(wire.size.strip().lower())
    if match is None:
        raise InvalidRequest(f'size must be WIDTHxHEIGHT in pixels, such as "1280x720", got {wire.size[:40]!r}', "size")
    width, height = int(match["width"]), int(match["height"])
    if not all(MIN_SIDE <= side <= entry.limits.side for side in (width, height)):
        raise InvalidRequest(
            f"size must have sides of {MIN_SIDE} to {entry.limits.side} pixels for this model, got {width}x{height}",
            "size",
        )
    return width, height


def _brief(number: float) -> str:
    return f"{number:.6g}"


def served(catalogue: Catalogue) -> list[str]:
    """Return every name that `model` may be: the public ones in the operator's order, each entry's own after them."""
    names: list[str] = []
    for entry_name, entry in catalogue.models.items():
        names += [*entry.names.get("openai", ()), entry_name]
    return list(dict.fromkeys(names))


def resolve(catalogue: Catalogue, name: str) -> str:
    """Return the catalogue name that a model's name means.

    Raises:
        UnknownModel: names what is served.
    """
    found = catalogue.find("openai", name) or (name if name in catalogue.models else None)
    if found is None:
        raise UnknownModel(name, served(catalogue))
    return found


def _default_model(catalogue: Catalogue, settings: OpenAISettings) -> str:
    if settings.default_model:
        return resolve(catalogue, settings.default_model)
    named = (name for name, entry in catalogue.models.items() if entry.names.get("openai"))
    return next(named, next(iter(catalogue.models)))


def check(catalogue: Catalogue, settings: OpenAISettings) -> None:
    """Stop the start when the model of clients that name none is not served.

    Raises:
        ConfigurationError: names the setting and what is served.
    """
    try:
        _default_model(catalogue, settings)
    except UnknownModel as err:
        raise ConfigurationError(
            f"dialects.openai.default_model: {err.name!r} is not served.{did_you_mean(err.name, err.served)} "
            f"Served: {', '.join(err.served)}."
        ) from None
