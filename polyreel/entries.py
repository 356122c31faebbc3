"""Entries of the catalogue: models, LoRAs and embeddings, as a profile's YAML describes them.

Plain validated data. What a name means, and whether a request can run, is `polyreel.catalogue`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from polyreel.errors import InvalidRequest

_Strict = ConfigDict(frozen=True, extra="forbid")

#: Smallest side in pixels where a contract names none; tiny checkpoints then answer in a second or two.
MIN_SIDE = 64


class Limits(BaseModel):
    """The largest request that an entry accepts.

    Args:
        num_frames: most frames of one video, where the dialect's own contract does not set the limit.
        side: most pixels of height and of width, likewise.
        num_inference_steps: most denoising steps, likewise.
        pixels: most of num_frames * height * width, whatever the dialect. What a video costs in memory grows with
            this product (as float32 RGB, 12 bytes each), and every single value may be legal while it is not.
    """

    model_config = _Strict
    num_frames: Annotated[int, Field(ge=1)] = 257
    side: Annotated[int, Field(ge=MIN_SIDE)] = 1280
    num_inference_steps: Annotated[int, Field(ge=1)] = 100
    pixels: Annotated[int, Field(ge=1)] = 100_000_000

    def check_pixels(self, num_frames: int, height: int, width: int) -> None:
        """Raise `InvalidRequest` when a video has more than `pixels`."""
        pixels = num_frames * height * width
        if pixels > self.pixels:
            raise InvalidRequest(
                f"frames x width x height must be at most {self.pixels} pixels in all, "
                f"got {num_frames} x {width} x {height} = {pixels}"
            )


class Defaults(BaseModel):
    """What a request that omits a value runs with, where the dialect's contract has no default of its own.

    Args:
        num_frames: of the video.
        height, width: of the video, pixels.
        fps: frames per second.
        num_inference_steps: denoising steps.
        guidance_scale: how closely the prompt is followed; 1 and less is without guidance.
    """

    model_config = _Strict
    num_frames: Annotated[int, Field(ge=1)] = 25
    height: Annotated[int, Field(ge=MIN_SIDE)] = 512
    width: Annotated[int, Field(ge=MIN_SIDE)] = 512
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16
    num_inference_steps: Annotated[int, Field(ge=1)] = 20
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0


#: What a checkpoint can do beyond turning one prompt into a video.
Task = Literal[
    "t2v",  # a prompt alone
    "i2v",  # a picture for the first frame
    "first_last",  # pictures for the first and the last frame
    "keyframes",  # pictures for any frames
    "prompt_travel",  # several prompts, each with its own span of frames
    "closed_loop",  # the last frame leads back into the first
    "upscale",  # a second pass at a larger size
    "embeddings",  # textual inversions
    "improved_sampling",  # FreeInit
]


class Part(BaseModel):
    """A further file or folder that an entry needs beside its checkpoint.

    Args:
        checkpoint: in the forms of `ServedModel.checkpoint`.
        revision: likewise.
        file: name of one safetensors file inside the folder, where the role takes a file.
    """

    model_config = _Strict
    checkpoint: str
    revision: str | None = None
    file: str | None = None


class Placement(BaseModel):
    """Where a model's weights live while it runs. What is left out is chosen when the model is loaded.

    Args:
        mode: "resident" keeps everything on the device; "cpu_offload" brings one component at a time;
            "group_offload" a few blocks at a time; "auto" takes the first of these that fits.
        fp8: store the denoiser's weights as float8 (e4m3) and compute in `dtype`: half the memory, a few per cent
            slower, slightly other pixels. None: only where the weights would not fit otherwise.
        vae_tiling: decode in overlapping tiles: less memory, and slightly other pixels, so it is fixed here; only
            `retry_with_less` switches it on, and the file then says so.
        vae_slicing: decode one video of a batch after the other; same pixels.
        retry_with_less: after out of memory, try the job again without the other models, offloaded, and with tiling.
    """

    model_config = _Strict
    mode: Literal["auto", "resident", "cpu_offload", "group_offload"] = "auto"
    fp8: bool | None = None
    vae_tiling: bool = False
    vae_slicing: bool = False
    retry_with_less: bool = True


class Cost(BaseModel):
    """What a model needs of the device's memory; zeros are not known and count nothing.

    `polyreel.admission` adds it up: weights + the larger of denoising and decoding. So each figure of the two is what
    they take beside the weights.

    Args:
        weights_gb: all components together in the dtypes that they run in, 1e9 bytes. From the sizes of the
            safetensors files, times 2 where files of 2 bytes a value run in float32 (Wan's VAE), half where it is
            the other way round.
        largest_gb: the largest single component in the same unit: what must fit under "cpu_offload".
        mb_per_1k_tokens: peak of denoising per 1,000 latent tokens (see `Geometry`), 1e6 bytes, with guidance. Measured
            as (peak - weights) / tokens; it hardly depends on the number of tokens while attention is not
            materialised.
        mb_per_megapixel: peak of decoding per million pixels of the whole video (frames x height x width), 1e6 bytes.
            All of it where the VAE decodes the video at once (LTX, AnimateDiff); where it goes frame by frame (Wan),
            what the finished frames take: about 24 (float32 RGB, held twice).
        mb_per_frame_megapixel: peak of decoding per million pixels of one frame, 1e6 bytes, where the VAE goes frame by
            frame (Wan); else 0.
    """

    model_config = _Strict
    weights_gb: Annotated[float, Field(ge=0)] = 0
    largest_gb: Annotated[float, Field(ge=0)] = 0
    mb_per_1k_tokens: Annotated[float, Field(ge=0)] = 0
    mb_per_megapixel: Annotated[float, Field(ge=0)] = 0
    mb_per_frame_megapixel: Annotated[float, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_component_is_no_more_than_all(self) -> Cost:
        if self.largest_gb > self.weights_gb:
            raise ValueError("largest_gb is over weights_gb, of which it is a part")
        return self


class Geometry(BaseModel):
    """How a video becomes latent tokens, and how the work of one denoising step grows with their number.

    tokens = (1 + ceil((num_frames - 1) / frames)) x ceil(height / pixels) x ceil(width / pixels)

    Args:
        frames: frames per latent frame after the first one: the VAE's temporal compression. Wan 4, LTX 8,
            AnimateDiff 1. 0 is not known: tokens are not counted.
        pixels: pixels of a side per token: the VAE's spatial compression x the patch of the transformer. Wan 2.1 and
            A14B 16 (8 x 2), TI2V-5B 32 (16 x 2), LTX 32 (32 x 1), AnimateDiff 8.
        attention_tokens: how many tokens make self-attention as much work as the rest of a block. The linear layers
            of a DiT block take 2N(6d^2 + 2 d ffn) FLOP, self-attention 4N^2 d, so this is 3 d + ffn for width d:
            Wan 1.3B 13,568 (d 1536, ffn 8960), LTX-Video 2B 14,336 (2048, 8192). 0 leaves it out, as for
            AnimateDiff, whose attention does not see all tokens at once.
    """

    model_config = _Strict
    frames: Annotated[int, Field(ge=0)] = 0
    pixels: Annotated[int, Field(ge=1)] = 1
    attention_tokens: Annotated[int, Field(ge=0)] = 0


#: A side that every VAE and patch of Wan's published layouts can have; what a checkpoint needs beyond, it says itself.
_NativeSide = Annotated[int, Field(ge=16, multiple_of=16)]


class Native(BaseModel):
    """The sizes and lengths that a model was trained for, and therefore makes, whatever it is asked for.

    Args:
        sizes: pairs of height and width, pixels, each 16 or more and a multiple of 16. A video is made at the one whose
            shape is nearest and scaled from there.
        num_frames: of a video, in rising order. As many are made as asked or the next more, else the most, and spread
            over the time that was asked for.
    """

    model_config = _Strict
    sizes: tuple[tuple[_NativeSide, _NativeSide], ...]
    num_frames: tuple[Annotated[int, Field(ge=1)], ...]

    @field_validator("sizes", "num_frames")
    @classmethod
    def _is_not_empty(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        # Not `min_length`: pydantic counts items that are wrong as missing, and would say so beside what is wrong.
        if not values:
            raise ValueError("must have one at least, got none; leave out `native` to make any size and length")
        return values

    @field_validator("num_frames")
    @classmethod
    def _rises(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        rising = sorted(set(counts))
        if list(counts) != rising:
            raise ValueError(f"must rise from one count to the next, got {list(counts)}; write {rising}")
        return counts

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width at which a video of this size is made, pixels.

        It is the one whose aspect ratio is nearest; among equal ones the nearest in area, then the first. Both count by
        their quotients, so that half is as far as double.
        """

        def distance(size: tuple[int, int]) -> tuple[Fraction, Fraction]:
            own_height, own_width = size
            return (
                _quotient(own_height * width, own_width * height),
                _quotient(own_height * own_width, height * width),
            )

        return min(self.sizes, key=distance)

    def num_frames_for(self, num_frames: int) -> int:
        """Return how many frames are made for a video of `num_frames`: as many, or the next more, or the most."""
        return next((count for count in self.num_frames if count >= num_frames), self.num_frames[-1])

    def most_prompts(self, num_frames: int) -> int:
        """Return how many prompts a video of `num_frames` can have: one for each latent frame that is made.

        Four frames are one latent frame, and the first is one alone: of Wan, the only family that has native sizes.
        """
        return (self.num_frames_for(num_frames) - 1) // 4 + 1


def _quotient(one: int, other: int) -> Fraction:
    """Return the larger over the smaller: 1 for equal ones. Exact, so that equal distances are equal."""
    return max(Fraction(one, other), Fraction(other, one))


class ServedModel(BaseModel):
    """One catalogue entry.

    Args:
        family: name of a model family in `models/`: "wan", "ltx" or "animatediff".
        checkpoint: "shipped:NAME" (comes with Polyreel), "tiny:NAME" (random weights, built on the machine), a local
            folder or single .safetensors file, or a hub id "OWNER/NAME" ("OWNER/NAME/FILE.safetensors" for a single
            file of it).
        revision: pinned commit of a hub id; None takes what `polyreel pull` pinned, else the local hub cache's main.
        parts: further files by role: "motion_adapter" (AnimateDiff), "upsampler" (LTX), "lcm_lora" (AnimateLCM), …
        tasks: what the entry is offered for; a worker refuses to serve an entry whose checkpoint cannot do one.
        i2v: catalogue name of the entry that runs requests with a picture when this one cannot.
        dtype: of the denoiser; families keep fragile parts (Wan's VAE) in float32 by themselves.
        scheduler: settings that replace the checkpoint's own, such as {flow_shift: 3.0}; `class` names another
            diffusers scheduler.
        placement: memory against speed.
        attention: diffusers' attention backend, such as "native" or "_native_cudnn"; None is diffusers' default.
        step_cache: threshold of the first-block cache: steps whose first block changes less reuse the last result;
            0 is off and exact.
        pinned: stays loaded when others must go.
        audio: keep the sound of a model that makes one.
        native: what the checkpoint was trained for, where it makes nothing else well (Wan alone); None makes the asked
            size, or the next larger one that the family can.
        licence: SPDX id or name, for `polyreel models`.
        licence_url: page where the licence of gated weights is accepted.
        download_gb: size of the download, 1e9 bytes; 0 is not known.
        geometry, cost: what admission needs to know; see there.
        limits: the largest request that is accepted.
        defaults: what a request that omits a value runs with.
        names: dialect name to the public names by which its clients call this entry.
    """

    model_config = _Strict
    family: str
    checkpoint: str
    revision: str | None = None
    parts: dict[str, Part] = {}
    tasks: tuple[Task, ...] = ("t2v",)
    i2v: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    scheduler: dict[str, Any] = {}  # Any: whatever the scheduler class takes
    placement: Placement = Placement()
    attention: str | None = None
    step_cache: Annotated[float, Field(ge=0, lt=1)] = 0
    pinned: bool = False
    audio: bool = True
    native: Native | None = None
    licence: str = ""
    licence_url: str = ""
    download_gb: Annotated[float, Field(ge=0)] = 0
    geometry: Geometry = Geometry()
    cost: Cost = Cost()
    limits: Limits = Limits()
    defaults: Defaults = Defaults()
    names: dict[str, tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _defaults_are_within_limits(self) -> ServedModel:
        for field in ("num_frames", "num_inference_steps"):
            default, limit = getattr(self.defaults, field), getattr(self.limits, field)
            if default > limit:
                raise ValueError(
                    f"defaults.{field} is over limits.{field}: {default} is more than {limit}; change either"
                )
        for field in ("height", "width"):
            side = getattr(self.defaults, field)
            if side > self.limits.side:
                raise ValueError(
                    f"defaults.{field} is over limits.side: {side} is more than {self.limits.side}; change either"
                )
        pixels = self.defaults.num_frames * self.defaults.height * self.defaults.width
        if pixels > self.limits.pixels:
            raise ValueError(
                "defaults.num_frames * height * width is over limits.pixels: "
                f"{pixels} is more than {self.limits.pixels}; change either"
            )
        return self


class Adapter(BaseModel):
    """A LoRA or a textual inversion: a small file that changes a loaded model for one job.

    Args:
        checkpoint: "shipped:NAME", "tiny:NAME", a local safetensors file, or "OWNER/NAME/FILE.safetensors" on the hub.
        revision: pinned commit of a hub file.
        second: the file for the second transformer of a Wan 2.2 A14B model; None uses `checkpoint` for both.
        models: catalogue names of the entries that it was made for, at least one.
        token: the word by which a prompt calls a textual inversion; LoRAs have none.
        licence, licence_url, download_gb: as for a model.
        names: dialect name to the public names.
    """

    model_config = _Strict
    checkpoint: str
    revision: str | None = None
    second: str | None = None
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    token: str = ""
    licence: str = ""
    licence_url: str = ""
    download_gb: Annotated[float, Field(ge=0)] = 0
    names: dict[str, tuple[str, ...]] = {}
