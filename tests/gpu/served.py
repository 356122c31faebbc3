"""What these tests serve: a catalogue entry per published checkpoint, and the sizes that it is tried at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyreel.catalogue import Catalogue
from polyreel.entries import Defaults, Limits, ServedModel, Task
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from tests.gpu.device import ON_CPU

#: What a bf16 matrix product reaches on an H100 or H200, FLOP per second; the floor of a step is its FLOP over this.
FLOP_PER_S = 780e12


@dataclass(frozen=True)
class Size:
    """Frames and pixels."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}"


#: Small enough that a job takes seconds: for what does not depend on size.
SMALL = Size(5, 64, 64) if ON_CPU else Size(17, 256, 256)


@dataclass(frozen=True)
class Served:
    """One entry.

    Args:
        family: that runs it.
        tiny: layout of `models.tiny` that stands for it on the CPU.
        tasks: what it does.
        published: the size that its speed and memory are told for.
        step_flop: of one denoising step at that size with guidance, two calls of the denoiser; 1 MAC is 2 FLOP. From
            `torch.utils.flop_counter` on the meta device (see test_speed.py), where attention is counted in full.
        names: of the entry, by dialect.
    """

    family: str
    tiny: str
    tasks: tuple[Task, ...]
    published: Size
    step_flop: float
    names: dict[str, tuple[str, ...]]

    @property
    def size(self) -> Size:
        """The size at which speed and memory are looked at on this device."""
        return SMALL if ON_CPU else self.published

    @property
    def floor_s(self) -> float:
        """Seconds that one step takes at least at `published`."""
        return self.step_flop / FLOP_PER_S


#: Key of `tests/models/published` to its entry.
SERVED = {
    "wan2.1-1.3b": Served(
        family="wan",
        tiny="wan21",
        tasks=("t2v", "upscale"),
        published=Size(81, 480, 832),
        step_flop=566.0e12,  # 0.726 s
        names={"huggingface": ("Wan-AI/Wan2.1-T2V-1.3B",)},
    ),
    "wan2.2-5b": Served(
        family="wan",
        tiny="wan-ti2v",
        tasks=("t2v", "i2v", "upscale"),
        published=Size(121, 704, 1280),
        step_flop=1034.0e12,  # 1.33 s
        names={"universal": ("wan2.2",), "modelslab": ("wan2.2",)},
    ),
    "ltx": Served(
        family="ltx",
        tiny="ltx",
        tasks=("t2v", "i2v", "upscale"),
        published=Size(121, 512, 768),
        step_flop=58.2e12,  # 0.0746 s
        names={"huggingface": ("Lightricks/LTX-Video",), "universal": ("ltx",), "modelslab": ("ltx",)},
    ),
    "sd15-animatediff": Served(
        family="animatediff",
        tiny="animatediff",
        tasks=("t2v", "prompt_travel"),
        published=Size(16, 512, 512),
        step_flop=35.5e12,  # 0.0455 s
        names={
            "novita": ("darkSushiMixMix_225D_64380.safetensors",),
            "universal": ("animatediff",),
            "modelslab": ("animatediff",),
        },
    ),
}


def make_catalogue(folder: Path, **fields: Any) -> Catalogue:
    """Return a catalogue of all entries; on the GPU each has an empty folder, whose name says what is made.

    Args:
        fields: of every entry, such as `attention`.
    """
    return Catalogue({name: make_entry(name, folder, **fields) for name in SERVED})


def make_entry(name: str, folder: Path, **fields: Any) -> ServedModel:
    """Return the entry of one model; see `make_catalogue`."""
    served = SERVED[name]
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    return ServedModel(
        family=served.family,
        checkpoint=f"tiny:{served.tiny}" if ON_CPU else str(path),
        tasks=served.tasks,
        dtype="float32" if ON_CPU else "bfloat16",
        limits=Limits(pixels=134_217_728),
        defaults=Defaults(num_frames=9, height=64, width=64, num_inference_steps=2),
        names=served.names,
        **fields,
    )


def make_request(name: str, size: Size, **fields: Any) -> VideoRequest:
    """Return a request for a lossless file, so that what comes out can be compared pixel by pixel."""
    request: dict[str, Any] = {
        "model": name,
        "prompts": (PromptSpan("A cat walking across a sunny room", size.num_frames),),
        "negative_prompt": "low quality, blurry",
        "height": size.height,
        "width": size.width,
        "fps": 8.0,
        "num_inference_steps": 2,
        "guidance_scale": 5.0,
        "seed": 42,
        "outputs": (OutputSpec("zip", 8.0),),
    }
    return VideoRequest(**{**request, **fields})
