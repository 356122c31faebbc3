"""What is served: each entry names a checkpoint, the family that runs it, its limits, and its public names.

The catalogue is data (`models:` in a profile), so serving another checkpoint is ten lines of YAML and no code.
It knows nothing of vendors beyond the word under which each dialect looks names up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from polyreel.errors import ConfigurationError, InvalidRequest, UnknownModel

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
    """What a request that omits a value runs with, where the dialect's contract has no default of its own."""

    model_config = _Strict
    num_frames: Annotated[int, Field(ge=1)] = 25
    height: Annotated[int, Field(ge=MIN_SIDE)] = 512
    width: Annotated[int, Field(ge=MIN_SIDE)] = 512
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16
    num_inference_steps: Annotated[int, Field(ge=1)] = 20
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0


class ServedModel(BaseModel):
    """One catalogue entry.

    Args:
        family: name of a model family in `models/`: "wan", "ltx" or "animatediff".
        checkpoint: "tiny:NAME" (built on the machine), a local folder, or a hub id "OWNER/NAME".
        revision: pinned commit of a hub id; None takes what is in the local hub cache.
        dtype: of the denoiser; families keep fragile parts (Wan's VAE) in float32 by themselves.
        names: dialect name to the public names by which its clients call this entry.
    """

    model_config = _Strict
    family: str
    checkpoint: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    limits: Limits = Limits()
    defaults: Defaults = Defaults()
    names: dict[str, tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _defaults_are_within_limits(self) -> ServedModel:
        for field in ("num_frames", "num_inference_steps"):
            if getattr(self.defaults, field) > getattr(self.limits, field):
                raise ValueError(f"defaults.{field} is over limits.{field}")
        for field in ("height", "width"):
            if getattr(self.defaults, field) > self.limits.side:
                raise ValueError(f"defaults.{field} is over limits.side")
        if self.defaults.num_frames * self.defaults.height * self.defaults.width > self.limits.pixels:
            raise ValueError("defaults.num_frames * height * width is over limits.pixels")
        return self


class Catalogue:
    """Resolves public names to entries.

    Args:
        models: entries by catalogue name, in the operator's order.

    Raises:
        ConfigurationError: nothing is served, or one dialect would find two entries under one name.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        if not models:
            raise ConfigurationError("models: the catalogue is empty; start with --config tiny or list models in YAML.")
        self.models = dict(models)
        self._by_name: dict[tuple[str, str], str] = {}
        for entry_name, entry in models.items():
            for dialect, names in entry.names.items():
                for name in names:
                    taken = self._by_name.setdefault((dialect, name.lower()), entry_name)
                    if taken != entry_name:
                        raise ConfigurationError(
                            f"models.{entry_name}.names.{dialect}: {name!r} already belongs to {taken}; "
                            "take it out of one of the two."
                        )

    def __getitem__(self, entry_name: str) -> ServedModel:
        return self.models[entry_name]

    def find(self, dialect: str, public_name: str) -> str | None:
        """Return the catalogue name that `public_name` means in `dialect`, or None. Case does not matter."""
        return self._by_name.get((dialect, public_name.lower()))

    def resolve(self, dialect: str, public_name: str) -> str:
        """As `find`, for a dialect in which an unknown name is an error.

        Raises:
            UnknownModel: names what is served.
        """
        found = self.find(dialect, public_name)
        if found is None:
            raise UnknownModel(public_name, self.public_names(dialect))
        return found

    def public_names(self, dialect: str) -> list[str]:
        """Return every name that `dialect` serves, in catalogue order."""
        return [name for entry in self.models.values() for name in entry.names.get(dialect, ())]
