"""What a client asked for, in diffusers' words, once a dialect has translated it.

A `VideoRequest` is complete (every default is filled in, the seed is drawn) and neutral: vendor words such as
`steps` or `output_type` exist only in `server/dialects/`. It is stored in the job record as JSON and is what
the model family sees.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import asdict, dataclass
from typing import Any

#: Seeds are unsigned 63-bit here: JSON numbers of every client survive it, and torch takes up to 64 bits.
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """A prompt and the number of frames that it governs (1 or more)."""

    prompt: str
    num_frames: int


@dataclass(frozen=True, slots=True)
class ImageCondition:
    """A picture that one frame of the video is to show.

    Args:
        key: of the picture in the storage, made by us from its content; never a client's file name.
        frame_index: the frame that shows it, from 0; -1 is the last one.
        strength: 0..1, how strictly the frame follows it; families that know no strength take 1.
    """

    key: str
    frame_index: int = 0
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """A LoRA of the catalogue and how much of it.

    Args:
        name: catalogue name, never a vendor's.
        strength: 0 is none of it, 1 is as it was trained; 0..4.
    """

    name: str
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Upscale:
    """A second pass of the same family over the finished video, at a larger size.

    Args:
        height, width: pixels of the delivered file.
        strength: 0..1, how much of the second pass starts from noise; 0 keeps the first pass and only resizes.
        guidance_scale: of the second pass.
        num_inference_steps: of the second pass at strength 1; int(strength * steps) of them run, at least one
            unless strength is 0.
    """

    height: int
    width: int
    strength: float
    guidance_scale: float
    num_inference_steps: int


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One file to make of the frames.

    Args:
        format: name of a format in `polyreel.formats`, such as "mp4", "gif", "webm", "zip" or "thumbnail".
        fps: playback rate of this file, frames per second, more than 0.
        quality: "fast", "good" or "best"; a format without qualities ignores it.
    """

    format: str
    fps: float
    quality: str = "good"


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """One video, exactly as it is to be delivered.

    Args:
        model: name of a catalogue entry (never a vendor's name).
        prompts: one or more spans, in order; their frames add up to `num_frames`.
        height, width: pixels of the video, whatever multiple the family needs inside; `upscale` enlarges it.
        fps: frames per second; also a conditioning input of LTX.
        num_inference_steps: denoising steps, 1 or more.
        guidance_scale: classifier-free guidance; 1 or less turns it off.
        seed: 0..2**63-1, already drawn when the client gave none.
        negative_prompt: "" for none.
        clip_skip: layers of the CLIP text encoder to skip, None for none; no effect on Wan and LTX.
        images: pictures that frames are to show, in the order of their frames; () is text to video.
        loras: in the order in which they were asked for, each name once.
        embeddings: catalogue names of textual inversions.
        closed_loop: True makes the last frame lead back into the first.
        upscale: None delivers what the model made.
        improved_sampling_seed: None is plain sampling; else 0..2**63-1, the seed of the extra noise that FreeInit
            draws between its iterations.
        outputs: the files to make of the same frames, at least one.
        flow_shift: how far the noise schedule leans towards high noise, over 0; None is the entry's own. Wan alone
            has it; no effect on LTX and AnimateDiff.
    """

    model: str
    prompts: tuple[PromptSpan, ...]
    height: int
    width: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    seed: int
    outputs: tuple[OutputSpec, ...]
    negative_prompt: str = ""
    clip_skip: int | None = None
    images: tuple[ImageCondition, ...] = ()
    loras: tuple[AdapterUse, ...] = ()
    embeddings: tuple[str, ...] = ()
    closed_loop: bool = False
    upscale: Upscale | None = None
    improved_sampling_seed: int | None = None
    flow_shift: float | None = None

    @property
    def num_frames(self) -> int:
        """Frames of the delivered file: the sum over the prompt spans."""
        return sum(span.num_frames for span in self.prompts)

    @property
    def delivered_height(self) -> int:
        """Height of the delivered file in pixels."""
        return self.upscale.height if self.upscale else self.height

    @property
    def delivered_width(self) -> int:
        """Width of the delivered file in pixels."""
        return self.upscale.width if self.upscale else self.width

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VideoRequest:
        """Rebuild a request from `to_dict`'s values; what an older record lacks takes its default."""
        upscale = values.get("upscale")
        return cls(
            **{
                **values,
                "prompts": tuple(PromptSpan(**span) for span in values["prompts"]),
                "outputs": tuple(OutputSpec(**output) for output in values["outputs"]),
                "images": tuple(ImageCondition(**image) for image in values.get("images", ())),
                "loras": tuple(AdapterUse(**lora) for lora in values.get("loras", ())),
                "embeddings": tuple(values.get("embeddings", ())),
                "upscale": Upscale(**upscale) if upscale else None,
            }
        )


def picture_key(content: bytes) -> str:
    """Return the storage key of a picture: its digest, so that identical requests are equal."""
    return f"in/{hashlib.sha256(content).hexdigest()}"


def draw_seed() -> int:
    """Return a random seed of 32 bits, the range that every vendor's clients expect to read back."""
    return secrets.randbits(32)
