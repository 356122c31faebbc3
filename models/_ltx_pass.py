"""What the passes of all LTX models have in common: what is asked of one, what comes out, and what wraps a pipeline.

Knows no family and no class of pipeline; `_ltx_video` and `_ltx2` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from models import Pipeline, PreparedRequest
from models._pictures import cover
from models._progress import Meter
from models.loaded import LoadedModel
from polyreel.formats import Audio

Tensor = Any  # torch is imported lazily
Generators = Sequence[Any]  # of torch.Generator


@dataclass(frozen=True)
class Picture:
    """A picture that a frame is to show.

    Args:
        pixels: uint8 of shape (height, width, 3), RGB, any size.
        frame_index: from 0.
        strength: 0..1.
    """

    pixels: np.ndarray
    frame_index: int
    strength: float

    def covering(self, height: int, width: int) -> Any:  # a PIL image
        """Return it as a picture of this size."""
        return cover(self.pixels, height, width)


@dataclass(frozen=True)
class Pass:
    """One denoising of a batch of requests.

    Args:
        num_frames, height, width: as the model makes them: 8k + 1 frames, sides in its multiples.
        num_inference_steps: of the whole schedule.
        num_steps: how many of them run: the last ones. All, unless there is something to start from.
        guidance_scale: 1 or less runs the denoiser once per step.
        start: what to start from: latents as an earlier pass or the upsampler returned them, or frames, uint8 of
            shape (num_frames, height, width, 3); None is noise.
        audio_latents: of the earlier pass, where the model has any.
        pictures: for frames of the video.
        decode: return frames; else latents.
        sound: return the sound too, where the model makes any.
    """

    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    num_steps: int
    guidance_scale: float
    start: Any = None  # Any: a tensor or an array
    audio_latents: Tensor = None
    pictures: Sequence[Picture] = ()
    decode: bool = True
    sound: bool = False


@dataclass(frozen=True)
class Passed:
    """What came out of a pass.

    Args:
        frames: (B, F, H, W, 3), float32, 0..1; None when latents were asked for.
        latents: (B, C, latent frames, H / 32, W / 32), in the kind's own scale; None when frames were asked for.
        audio_latents: of the sound, for the next pass; None where the model makes none.
        audio: one per sample, longer or shorter than the video by a fraction of a second; () for none.
        made: facts for `Video.made`.
    """

    frames: Any = None  # Any: an array, which only who asked for it looks at
    latents: Tensor = None
    audio_latents: Tensor = None
    audio: Sequence[Audio] = ()
    made: dict[str, Any] = field(default_factory=dict)  # Any: JSON


class Kind(Protocol):
    """How the models of one generation are called."""

    def sides(self, pipeline: Pipeline, height: int, width: int) -> tuple[int, int]:
        """Return the smallest height and width that contain these and that the model can make."""

    def denoise(
        self, model: LoadedModel, batch: Sequence[PreparedRequest], meter: Meter, generator: Generators, asked: Pass
    ) -> Passed:
        """Run one pass.

        Raises:
            GenerationFailed, OutOfMemory, Cancelled: see `models._run.run_pipeline`.
        """


def as_class(model: LoadedModel, class_name: str) -> Pipeline:
    """Return a pipeline of a class over the model's weights: its own if it is one already."""
    return model.pipeline if type(model.pipeline).__name__ == class_name else model.variant(class_name)


def decoder_calls(pipeline: Pipeline, samples: int, height: int, width: int) -> int:
    """Return how often the VAE will call its decoder for samples of this size: once, but for tiles and slices.

    Args:
        height, width: pixels.
    """
    vae = pipeline.vae
    slices = samples if getattr(vae, "use_slicing", False) else 1
    if not getattr(vae, "use_tiling", False):
        return slices
    if height <= vae.tile_sample_min_height and width <= vae.tile_sample_min_width:
        return slices
    rows, columns = -(-height // vae.tile_sample_stride_height), -(-width // vae.tile_sample_stride_width)
    return int(slices * rows * columns)
