"""What a client asked for, in diffusers' words, once a dialect has translated it.

A `VideoRequest` is complete (every default is filled in, the seed is drawn) and neutral: vendor words such as
`steps` or `output_type` exist only in `server/dialects/`. It is stored in the job record as JSON and is what
the model family sees.
"""

from __future__ import annotations

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
class OutputSpec:
    """One file to make of the frames.

    Args:
        format: name of a format in `polyreel.formats`: "mp4", "gif", "webm" or "zip".
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
        height, width: pixels of the delivered file, whatever multiple the family needs inside.
        fps: frames per second; also a conditioning input of LTX.
        num_inference_steps: denoising steps, 1 or more.
        guidance_scale: classifier-free guidance; 1 or less turns it off.
        seed: 0..2**63-1, already drawn when the client gave none.
        negative_prompt: "" for none.
        clip_skip: layers of the CLIP text encoder to skip, None for none; no effect on Wan and LTX.
        outputs: the files to make of the same frames, at least one.
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

    @property
    def num_frames(self) -> int:
        """Frames of the delivered file: the sum over the prompt spans."""
        return sum(span.num_frames for span in self.prompts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VideoRequest:
        """Rebuild a request from `to_dict`'s values."""
        return cls(
            **{
                **values,
                "prompts": tuple(PromptSpan(**span) for span in values["prompts"]),
                "outputs": tuple(OutputSpec(**output) for output in values["outputs"]),
            }
        )


def draw_seed() -> int:
    """Return a random seed of 32 bits, the range that every vendor's clients expect to read back."""
    return secrets.randbits(32)
