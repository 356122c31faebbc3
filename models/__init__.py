"""Model families: each module of this package runs one family of diffusers pipelines.

A family publishes `FAMILY`, an object with the attributes of `Family`. torch, transformers and diffusers are
imported inside `load()`, so that listing the families costs nothing; the API process never imports this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from polyreel.discovery import discover
from polyreel.entries import Native, Placement, Task
from polyreel.formats import Audio
from polyreel.request import VideoRequest

if TYPE_CHECKING:  # it needs the names below
    from models.loaded import LoadedModel

#: What a family does with one batch of requests, in this order; encoding files is not its business.
Stage = Literal["text_encoding", "denoising", "decoding"]


#: Gives pictures of what is being denoised, by the place of the request in the call: uint8 of shape (height, width, 3),
#: RGB, of the middle of the video. Computed when it is called, which is within the `on_progress` that it came with.
Pictures = Callable[[], dict[int, np.ndarray]]


def no_pictures() -> dict[int, np.ndarray]:
    """Show nothing."""
    return {}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call of `Family.generate` is.

    Args:
        stage: what is being done. A second pass goes through the stages again.
        step: denoising steps done, over all passes and FreeInit iterations; never decreases.
        total_steps: of the whole call; known from the start.
        share: 0..1 of the whole call; never decreases.
        pictures: what the step just taken promises, see `models._previews`; nothing but after a step, and for requests
            that are not being denoised now.
    """

    stage: Stage
    step: int
    total_steps: int
    share: float
    pictures: Pictures = field(default=no_pictures, compare=False, repr=False)


#: Called at the start of each stage, after each denoising step and between the parts of decoding; may raise
#: `polyreel.errors.Cancelled`, which ends the call at once.
OnProgress = Callable[[Progress], None]


class Snapshots(Protocol):
    """Where one job's state goes while it is denoised, and what an earlier attempt left.

    Attributes:
        every: denoising steps between two saves, 1 or more.
        state: what an earlier attempt saved last; None to start at the beginning.
    """

    every: int
    state: bytes | None

    def save(self, state: bytes, step: int) -> None:
        """Keep `state` instead of what was saved before; must return at once, may be called in another thread.

        Args:
            state: complete, with a checksum of its own.
            step: denoising steps that it saves, over all passes.
        """


#: A diffusers pipeline. Any: the concrete classes are imported lazily and share no useful base for typing.
Pipeline = Any


@dataclass(frozen=True)
class Checkpoint:
    """What a family loads: everything is on this machine, nothing has been opened yet.

    Args:
        path: a folder in diffusers layout, or one .safetensors file where the family reads such files.
        name: as the catalogue calls it, such as "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", for the receipt.
        revision: commit of a hub repository, "" for others.
        parts: further folders and files by role; see the family.
        part_names: the same as the catalogue calls them, for the receipt.
        scheduler: settings that replace the checkpoint's own; `class` names another diffusers scheduler.
        attention: diffusers' attention backend, None for its default.
        step_cache: threshold of the first-block cache, 0 for none.
        audio: keep the sound of a model that makes one.
        native: the sizes and lengths that it makes; None for any that the family can.
    """

    path: Path
    name: str = ""
    revision: str = ""
    parts: dict[str, Path] = field(default_factory=dict)
    part_names: dict[str, str] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)  # Any: whatever the scheduler class takes
    attention: str | None = None
    step_cache: float = 0.0
    audio: bool = True
    native: Native | None = None


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA or textual inversion on this machine.

    Args:
        name: catalogue name, for messages.
        path: safetensors file.
        second: for the second transformer of a Wan 2.2 A14B model, None to use `path` for both.
        strength: of a LoRA, 0..2.
        token: of a textual inversion, the word that prompts use.
        aliases: further words that mean the same: its public names, its file's name.
    """

    name: str
    path: Path
    second: Path | None = None
    strength: float = 1.0
    token: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreparedRequest:
    """A request with everything that it refers to at hand.

    Args:
        request: as it runs.
        images: RGB pictures in the order of `request.images`, uint8 of shape (height, width, 3), any size.
        loras, embeddings: files in the order of the request's.
    """

    request: VideoRequest
    images: tuple[np.ndarray, ...] = ()
    loras: tuple[AdapterFile, ...] = ()
    embeddings: tuple[AdapterFile, ...] = ()


@dataclass(frozen=True)
class Video:
    """What a family made of one request.

    Args:
        frames: uint8 of exactly (num_frames, delivered_height, delivered_width, 3), RGB.
        audio: the sound that belongs to it, None for silence.
        made: how it was made, for the receipt: plain JSON of reproducible facts, such as the scheduler, the size that
            was really denoised, the caches. No times, ids or dates.
        seconds: seconds per stage.
        pipelines: class names of the diffusers pipelines that made it, one per call, in order.
        resumed_from: denoising steps, over all passes, that this call left out because an earlier attempt did them.
        not_resumable: why the call saved nothing although it was to: "step cache", "FreeInit" or what a scheduler
            keeps; "" for one that did, or was not asked to. Neither of the two belongs into `made`: a resumed video
            is the same file.
    """

    frames: np.ndarray
    audio: Audio | None = None
    made: dict[str, Any] = field(default_factory=dict)  # Any: JSON
    seconds: dict[str, float] = field(default_factory=dict)
    pipelines: tuple[str, ...] = ()
    resumed_from: int = 0
    not_resumable: str = ""


class Family(Protocol):
    """One family of checkpoints that load and run in the same way.

    Attributes:
        name: what a catalogue entry's `family` says, e.g. "wan".
    """

    name: str

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        """Look at a checkpoint without loading it, in well under a second; return what it can do.

        Raises:
            CheckpointUnavailable: `load` would not take it.
        """

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        """Load a checkpoint, tiny or real, without touching the network.

        Args:
            device: "cpu", "cuda" or "cuda:N".
            dtype: "float32", "bfloat16" or "float16".
            placement: where the weights live; "auto" has been decided by the caller and means resident here.

        Raises:
            CheckpointUnavailable: missing, incomplete, of another class, or it needs pickles or code of its own.
            OutOfMemory: it does not fit.
        """

    def generate(
        self,
        model: LoadedModel,
        requests: Sequence[PreparedRequest],
        on_progress: OnProgress,
        snapshots: Snapshots | None = None,
    ) -> list[Video]:
        """Denoise `requests` into videos, in the same order.

        Args:
            model: from `load`; used by one thread at a time.
            requests: one; or several that share everything but prompts and seed and ask for text to video alone,
                which run as one batch.
            on_progress: may raise `Cancelled`, which ends the call at once and leaves the model fit for the next one.
            snapshots: for a single request: its state is saved there every few steps, and where an earlier attempt
                saved one, the call goes on from it and ends with the bytes that it would have had without the
                interruption. A state that does not fit or cannot be read is ignored. `save` is not called any more
                when the call has returned.

        Raises:
            GenerationFailed: the pipeline raised or returned NaN; the cause is chained.
            OutOfMemory: the device's memory ran out.
            AdapterUnavailable: a LoRA or embedding is broken or was made for another model.
            Cancelled: from `on_progress`.
        """


@cache
def families() -> dict[str, Family]:
    """Return every model family by name."""
    return discover("models", "FAMILY")
