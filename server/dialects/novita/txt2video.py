"""`POST /v3/async/txt2video`: its wire model, and what a body means.

Source: novita.ai/docs "Text to Video".
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from polyreel.catalogue import Catalogue
from polyreel.entries import Adapter
from polyreel.errors import InvalidRequest
from polyreel.request import AdapterUse, OutputSpec, PromptSpan, VideoRequest
from server.body import validate
from server.dialects.novita.extras import Extra, extra_of
from server.dialects.novita.settings import NovitaSettings
from server.snippets import Unsayable, WireCall, Wish, filled, given
from server.wire import Integer, Number, check_length, check_prompt, check_range, choose_seed

_LONGEST_PROMPT = 1024  # characters, also of the negative one
_MOST_FRAMES = 128  # over all prompts


class Prompt(BaseModel):
    """One clip of the video."""

    frames: Integer
    prompt: str


class Lora(BaseModel):
    """A LoRA and how much of it; a null strength is refused as the page says "required"."""

    model_name: str
    strength: Number

    model_config = ConfigDict(protected_namespaces=())


class Embedding(BaseModel):
    """A textual inversion."""

    model_name: str

    model_config = ConfigDict(protected_namespaces=())


class TextToVideo(BaseModel):
    """The request body; null means absent, unknown keys are ignored. Ranges are checked apart, for their messages.

    Lists stop at their first wrong item: only that is told, and a body has room for half a million of them.
    """

    model_name: str
    height: Integer
    width: Integer
    steps: Integer
    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=16, fail_fast=True)]
    negative_prompt: str | None = None
    guidance_scale: Number | None = None
    seed: Integer | None = None
    loras: Annotated[list[Lora], Field(max_length=5, fail_fast=True)] | None = None
    embeddings: Annotated[list[Embedding], Field(max_length=5, fail_fast=True)] | None = None
    closed_loop: bool | None = None
    clip_skip: Integer | None = None
    extra: Extra | None = None

    model_config = ConfigDict(protected_namespaces=())


#: field: (least, most); null is not checked
_RANGES: dict[str, tuple[float, float]] = {
    "height": (256, 1024),
    "width": (256, 1024),
    "steps": (1, 50),
    "guidance_scale": (1, 30),
    "clip_skip": (1, 12),
}


def from_wire(wire: TextToVideo, catalogue: Catalogue, settings: NovitaSettings) -> VideoRequest:
    """Translate a body into the neutral request.

    Raises:
        InvalidRequest: names the field.
        UnknownModel: no such checkpoint, LoRA or embedding.
    """
    for field, (least, most) in _RANGES.items():
        if getattr(wire, field) is not None:
            check_range(field, getattr(wire, field), least, most)
    prompts = _prompts(wire.prompts)
    check_length("negative_prompt", wire.negative_prompt, _LONGEST_PROMPT)
    seed = choose_seed("seed", wire.seed)
    extra = wire.extra or Extra()
    model = catalogue.resolve("novita", wire.model_name)
    return VideoRequest(
        model=model,
        prompts=prompts,
        negative_prompt=wire.negative_prompt or "",
        height=wire.height,
        width=wire.width,
        fps=settings.fps,
        num_inference_steps=wire.steps,
        guidance_scale=settings.guidance_scale if wire.guidance_scale is None else wire.guidance_scale,
        seed=seed,
        clip_skip=wire.clip_skip,
        loras=_loras(wire.loras or [], catalogue, model),
        embeddings=_embeddings(wire.embeddings or [], catalogue, model),
        closed_loop=bool(wire.closed_loop),
        outputs=(OutputSpec(extra.response_video_type or "mp4", settings.fps),),
    )


def snippet(wish: Wish, catalogue: Catalogue, settings: NovitaSettings) -> WireCall:
    """Say a request in these words.

    Raises:
        Unsayable, InvalidRequest: there are no words for it, or it is out of range here.
    """
    r = wish.request
    loras = [given(model_name=_called(catalogue.loras[use.name], use.name), strength=use.strength) for use in r.loras]
    embeddings = [{"model_name": _called(catalogue.embeddings[name], name)} for name in r.embeddings]
    body = given(
        model_name=wish.name_in(catalogue, "novita"),
        prompts=[{"frames": span.num_frames, "prompt": span.prompt} for span in r.prompts],
        negative_prompt=r.negative_prompt or None,
        height=r.height,
        width=r.width,
        steps=r.num_inference_steps,
        guidance_scale=r.guidance_scale,
        seed=wish.seed,
        loras=loras or None,
        embeddings=embeddings or None,
        closed_loop=r.closed_loop or None,
        clip_skip=r.clip_skip,
        extra=extra_of(wish),
    )
    means = from_wire(validate(TextToVideo, filled(body)), catalogue, settings)
    return WireCall("/v3/async/txt2video", body, means)


def _called(adapter: Adapter, name: str) -> str:
    """Return the name by which clients call an adapter."""
    names = adapter.names.get("novita")
    if not names:
        raise Unsayable(f"{name} has no name in this API")
    return names[0]


def _loras(loras: list[Lora], catalogue: Catalogue, model: str) -> tuple[AdapterUse, ...]:
    uses: dict[str, AdapterUse] = {}
    for i, lora in enumerate(loras):
        check_range(f"loras.{i}.strength", lora.strength, 0, 1)
        name = catalogue.resolve_lora("novita", lora.model_name, model)
        if name in uses:
            raise InvalidRequest(f"loras.{i}.model_name: {lora.model_name[:200]} comes twice; send it once", "loras")
        uses[name] = AdapterUse(name, lora.strength)
    return tuple(uses.values())


def _embeddings(embeddings: list[Embedding], catalogue: Catalogue, model: str) -> tuple[str, ...]:
    names = [catalogue.resolve_embedding("novita", embedding.model_name, model) for embedding in embeddings]
    return tuple(dict.fromkeys(names))


def _prompts(clips: list[Prompt]) -> tuple[PromptSpan, ...]:
    for i, clip in enumerate(clips):
        check_range(f"prompts.{i}.frames", clip.frames, 8, 64)
        check_prompt(f"prompts.{i}.prompt", clip.prompt)
        check_length(f"prompts.{i}.prompt", clip.prompt, _LONGEST_PROMPT)
    frames = sum(clip.frames for clip in clips)
    if frames > _MOST_FRAMES:
        raise InvalidRequest(
            f"prompts: the frames of all prompts must add up to {_MOST_FRAMES} or less, got {frames}", "prompts"
        )
    return tuple(PromptSpan(clip.prompt, clip.frames) for clip in clips)
