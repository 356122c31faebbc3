"""What a client sends to make a video: diffusers' own words, which are those of `polyreel.request` too.

Ranges are checked apart, in `server.dialects.native.video`, for their messages. Null means absent, unknown keys are
ignored. Lists stop at their first wrong item: only that is told, and a body has room for half a million of them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from server.wire import Integer, Number

#: Most prompts, keyframes, LoRAs, embeddings and files of one job.
MOST_ITEMS = 16

#: A picture: base64, a data URL, or a link that the server fetches.
PictureText = Annotated[str, Field(min_length=1)]


class Prompt(BaseModel):
    """A prompt and the number of frames that it governs."""

    prompt: str
    num_frames: Integer


class Keyframe(BaseModel):
    """A picture that one frame of the video is to show; frame -1 is the last."""

    frame_index: Integer
    image: PictureText
    strength: Number | None = None


class Lora(BaseModel):
    """A LoRA of the catalogue and how much of it."""

    name: str
    strength: Number | None = None


class Upscale(BaseModel):
    """A second pass at a larger size; a side that is left out keeps the aspect."""

    height: Integer | None = None
    width: Integer | None = None
    strength: Number | None = None
    guidance_scale: Number | None = None
    num_inference_steps: Integer | None = None


class Output(BaseModel):
    """A file to make of the frames."""

    format: str
    fps: Number | None = None
    quality: Literal["fast", "good", "best"] | None = None


class NewJob(BaseModel):
    """The body of a submit. What is left out comes from the model's catalogue entry."""

    model: str
    prompt: str | None = None
    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True)] | None = None
    negative_prompt: str | None = None
    num_frames: Integer | None = None
    height: Integer | None = None
    width: Integer | None = None
    fps: Number | None = None
    num_inference_steps: Integer | None = None
    guidance_scale: Number | None = None
    flow_shift: Number | None = None
    seed: Integer | None = None
    image: PictureText | None = None
    last_image: PictureText | None = None
    keyframes: Annotated[list[Keyframe], Field(max_length=MOST_ITEMS, fail_fast=True)] | None = None
    loras: Annotated[list[Lora], Field(max_length=MOST_ITEMS, fail_fast=True)] | None = None
    embeddings: Annotated[list[str], Field(max_length=MOST_ITEMS, fail_fast=True)] | None = None
    clip_skip: Integer | None = None
    closed_loop: bool | None = None
    upscale: Upscale | None = None
    improved_sampling: bool | None = None
    improved_sampling_seed: Integer | None = None
    outputs: Annotated[list[Output], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True)] | None = None
    webhook: str | None = None
    keep_s: Number | None = None
