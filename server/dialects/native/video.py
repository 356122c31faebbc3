"""A submit's body to the neutral request. Pure: its pictures are fetched and stored by the route."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from polyreel.catalogue import OWN, Catalogue
from polyreel.entries import MIN_SIDE, Defaults
from polyreel.errors import InvalidRequest, did_you_mean
from polyreel.formats import formats
from polyreel.request import AdapterUse, ImageCondition, OutputSpec, PromptSpan, Upscale, VideoRequest
from server.body import validate
from server.dialects import NoSettings
from server.dialects.native.fields import NewJob, Output
from server.snippets import WireCall, Wish, filled, given
from server.wire import check_length, check_limits, check_prompt, check_range, choose_seed

#: Largest side of an upscaled video, pixels.
_LARGEST_SIDE = 4096

#: A file is kept this long at least, seconds: whoever submits has to fetch it.
_LEAST_KEEP_S = 60

#: field: (least, most); null is not checked. The catalogue entry limits frames, sides and steps.
_RANGES: dict[str, tuple[float, float]] = {
    "fps": (1, 120),
    "guidance_scale": (0, 100),
    "flow_shift": (0.01, 100),
    "clip_skip": (0, 12),
}

#: Fields of a submit that the entry's defaults have under the same name, and the request too.
_DEFAULTED = ("height", "width", "fps", "num_inference_steps", "guidance_scale")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A picture as it was sent, and what it is for.

    Args:
        field: dotted path, for messages.
        text: base64 or a link.
        frame_index: the frame that is to show it, -1 for the last.
        strength: 0..1.
    """

    field: str
    text: str
    frame_index: int
    strength: float


def from_wire(wire: NewJob, catalogue: Catalogue) -> VideoRequest:
    """Translate a body into the neutral request, but for its pictures.

    Raises:
        InvalidRequest: names the field.
        UnknownModel: no such model, LoRA or embedding.
    """
    model = catalogue.resolve_any(wire.model)
    entry = catalogue[model]
    values = {field: _given(wire, field, entry.defaults) for field in _DEFAULTED}
    prompts = _prompts(wire, entry.defaults)
    check_limits(
        entry.limits,
        MIN_SIDE,
        num_frames=("num_frames", sum(span.num_frames for span in prompts)),
        height=("height", values["height"]),
        width=("width", values["width"]),
        num_inference_steps=("num_inference_steps", values["num_inference_steps"]),
    )
    for field, (least, most) in _RANGES.items():
        value = values.get(field, getattr(wire, field))
        if value is not None:
            check_range(field, value, least, most)
    improved_sampling_seed = choose_seed("improved_sampling_seed", wire.improved_sampling_seed)
    return VideoRequest(
        model=model,
        prompts=prompts,
        negative_prompt=check_length("negative_prompt", wire.negative_prompt),
        **values,
        flow_shift=wire.flow_shift,
        seed=choose_seed("seed", wire.seed),
        clip_skip=wire.clip_skip,
        loras=_loras(wire, catalogue, model),
        embeddings=_embeddings(wire, catalogue, model),
        closed_loop=bool(wire.closed_loop),
        upscale=_upscale(wire, values),
        improved_sampling_seed=improved_sampling_seed if wire.improved_sampling else None,
        outputs=_outputs(wire.outputs or [Output(format="mp4")], values["fps"]),
    )


def wanted_pictures(wire: NewJob, num_frames: int) -> list[Wanted]:
    """Return the pictures of a body in the order of their frames.

    Raises:
        InvalidRequest: a frame that does not exist, or one with two pictures.
    """
    found = []
    if wire.image is not None:
        found.append(Wanted("image", wire.image, 0, 1.0))
    for i, keyframe in enumerate(wire.keyframes or []):
        field = f"keyframes.{i}"
        check_range(f"{field}.frame_index", keyframe.frame_index, -1, num_frames - 1)
        strength = 1.0 if keyframe.strength is None else keyframe.strength
        check_range(f"{field}.strength", strength, 0, 1)
        # 0 of a video with one frame is its last too.
        index = -1 if keyframe.frame_index == num_frames - 1 > 0 else keyframe.frame_index
        found.append(Wanted(f"{field}.image", keyframe.image, index, strength))
    if wire.last_image is not None:
        found.append(Wanted("last_image", wire.last_image, -1, 1.0))
    taken: dict[int, str] = {}
    for picture in found:
        other = taken.setdefault(picture.frame_index, picture.field)
        if other != picture.field:
            raise InvalidRequest(f"{picture.field} is for the same frame as {other}; send one of them", picture.field)
    return sorted(found, key=lambda picture: num_frames if picture.frame_index == -1 else picture.frame_index)


def with_pictures(request: VideoRequest, wanted: list[Wanted], keys: list[str]) -> VideoRequest:
    """Return the request with its pictures; `keys` are theirs in the storage, in the same order."""
    images = (
        ImageCondition(key, picture.frame_index, picture.strength) for key, picture in zip(keys, wanted, strict=True)
    )
    return replace(request, images=tuple(images))


def snippet(wish: Wish, catalogue: Catalogue, settings: NoSettings) -> WireCall:
    """Say a request in these words; nothing is beyond them."""
    r = wish.request
    spans, upscale = r.prompts, r.upscale
    is_plain = r.outputs == (OutputSpec("mp4", r.fps),)
    body = given(
        model=r.model,
        prompt=spans[0].prompt if len(spans) == 1 else None,
        prompts=None if len(spans) == 1 else [given(prompt=one.prompt, num_frames=one.num_frames) for one in spans],
        negative_prompt=r.negative_prompt or None,
        **_said_pictures(wish),
        num_frames=r.num_frames,
        **{field: getattr(r, field) for field in _DEFAULTED},
        flow_shift=r.flow_shift,
        seed=wish.seed,
        clip_skip=r.clip_skip,
        loras=[given(name=use.name, strength=use.strength) for use in r.loras] or None,
        embeddings=list(r.embeddings) or None,
        closed_loop=r.closed_loop or None,
        upscale=given(**{name: getattr(upscale, name) for name in Upscale.__slots__}) if upscale else None,
        improved_sampling=None if r.improved_sampling_seed is None else True,
        improved_sampling_seed=r.improved_sampling_seed,
        outputs=None if is_plain else [given(**{name: getattr(one, name) for name in _SPEC}) for one in r.outputs],
        webhook=wish.webhook,
        keep_s=wish.keep_s,
    )
    wire = validate(NewJob, filled(body))
    wanted = wanted_pictures(wire, r.num_frames)
    return WireCall(
        "/polyreel/v1/jobs",
        body,
        with_pictures(from_wire(wire, catalogue), wanted, [image.key for image in r.images]),
    )


#: Of a file that is to be made.
_SPEC = ("format", "fps", "quality")


def _said_pictures(wish: Wish) -> dict[str, Any]:
    """Return the fields that bring the pictures. Any: JSON and blanks."""
    said: dict[str, Any] = {}
    for image, picture in zip(wish.request.images, wish.pictures, strict=True):
        field = {0: "image", -1: "last_image"}.get(image.frame_index) if image.strength == 1 else None
        if field:
            said[field] = picture
        else:
            keyframe = given(frame_index=image.frame_index, strength=image.strength, image=picture)
            said.setdefault("keyframes", []).append(keyframe)
    return said


def check_keep(keep_s: float | None, retention_s: float) -> float:
    """Return how long the job is to be kept after its end, seconds, 0.0 for as long as the server keeps any.

    Raises:
        InvalidRequest: names what is allowed.
    """
    if keep_s is None:
        return 0.0
    check_range("keep_s", keep_s, min(_LEAST_KEEP_S, retention_s), retention_s)
    return keep_s


def _given(wire: NewJob, field: str, defaults: Defaults) -> Any:
    """Return a field's value or the entry's default. Any: the field's own type."""
    value = getattr(wire, field)
    return getattr(defaults, field) if value is None else value


def _prompts(wire: NewJob, defaults: Defaults) -> tuple[PromptSpan, ...]:
    if wire.prompts is None:
        num_frames = defaults.num_frames if wire.num_frames is None else wire.num_frames
        return (PromptSpan(check_prompt("prompt", wire.prompt), num_frames),)
    if wire.prompt is not None:
        raise InvalidRequest("prompt and prompts exclude each other; send one of them", "prompts")
    for i, span in enumerate(wire.prompts):
        check_prompt(f"prompts.{i}.prompt", span.prompt)
        if span.num_frames < 1:
            raise InvalidRequest(f"prompts.{i}.num_frames must be 1 or more, got {span.num_frames}", "prompts")
    total = sum(span.num_frames for span in wire.prompts)
    if wire.num_frames not in (None, total):
        raise InvalidRequest(
            f"num_frames must be the sum of the prompts' frames, {total}, or left out; got {wire.num_frames}",
            "num_frames",
        )
    return tuple(PromptSpan(span.prompt, span.num_frames) for span in wire.prompts)


def _loras(wire: NewJob, catalogue: Catalogue, model: str) -> tuple[AdapterUse, ...]:
    uses: dict[str, AdapterUse] = {}
    for i, lora in enumerate(wire.loras or []):
        strength = 1.0 if lora.strength is None else lora.strength
        check_range(f"loras.{i}.strength", strength, 0, 2)
        name = catalogue.resolve_lora(OWN, lora.name, model)
        if name in uses:
            raise InvalidRequest(f"loras.{i}.name: {lora.name[:200]} comes twice; send it once", "loras")
        uses[name] = AdapterUse(name, strength)
    return tuple(uses.values())


def _embeddings(wire: NewJob, catalogue: Catalogue, model: str) -> tuple[str, ...]:
    names = [catalogue.resolve_embedding(OWN, name, model) for name in wire.embeddings or []]
    return tuple(dict.fromkeys(names))


def _upscale(wire: NewJob, values: dict[str, Any]) -> Upscale | None:
    """Return the second pass; its guidance and steps are those of the first where they are left out."""
    if wire.upscale is None:
        return None
    given = wire.upscale
    if given.height is None and given.width is None:
        raise InvalidRequest("upscale must name height, width or both", "upscale")
    aspect = values["width"] / values["height"]
    height = round((given.width or 0) / aspect) if given.height is None else given.height
    width = round(height * aspect) if given.width is None else given.width
    strength = 0.6 if given.strength is None else given.strength
    guidance_scale = values["guidance_scale"] if given.guidance_scale is None else given.guidance_scale
    steps = values["num_inference_steps"] if given.num_inference_steps is None else given.num_inference_steps
    check_range("upscale.height", height, MIN_SIDE, _LARGEST_SIDE)
    check_range("upscale.width", width, MIN_SIDE, _LARGEST_SIDE)
    check_range("upscale.strength", strength, 0, 1)
    check_range("upscale.guidance_scale", guidance_scale, *_RANGES["guidance_scale"])
    check_range("upscale.num_inference_steps", steps, 1, 100)
    return Upscale(height, width, strength, guidance_scale, steps)


def _outputs(outputs: list[Output], fps: float) -> tuple[OutputSpec, ...]:
    specs: dict[str, OutputSpec] = {}
    for i, output in enumerate(outputs):
        field = f"outputs.{i}"
        if output.format not in formats():
            raise InvalidRequest(
                f"{field}.format must be one of {', '.join(formats())}, got {output.format[:40]!r}."
                f"{did_you_mean(output.format, formats())}",
                f"{field}.format",
            )
        if output.format in specs:
            raise InvalidRequest(f"{field}.format: {output.format} comes twice; send it once", f"{field}.format")
        if output.fps is not None:
            check_range(f"{field}.fps", output.fps, *_RANGES["fps"])
        specs[output.format] = OutputSpec(output.format, output.fps or fps, output.quality or "good")
    return tuple(specs.values())
