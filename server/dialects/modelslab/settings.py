"""The section `dialects: modelslab:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from polyreel.catalogue import Catalogue
from polyreel.errors import ConfigurationError, did_you_mean


class ModelsLabSettings(BaseModel):
    """Where the vendor's documents, clients and live service disagree, the operator chooses.

    Args:
        default_output_type: when the client names none; the OpenAPI schema says gif. The routes of v7 make mp4.
        out_of_range: "error" answers 400 as documented; "clamp" takes the nearest allowed value (the official
            Python SDK sends 30 frames by default, over the documented 25).
        error_http: "documented" status codes, or "200" for all, which old clients expect.
        hold_s: how long a submit waits for the video before it answers "processing", seconds.
        default_model: what runs when `model_id` is absent or unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    default_output_type: Literal["mp4", "gif"] = "gif"
    out_of_range: Literal["error", "clamp"] = "error"
    error_http: Literal["documented", "200"] = "documented"
    hold_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0
    default_model: str = "wan2.2"


def check(catalogue: Catalogue, settings: ModelsLabSettings) -> None:
    """Stop the start when the model that unknown names fall back to is not served.

    Raises:
        ConfigurationError: names the setting and what is served.
    """
    served = catalogue.public_names("modelslab")
    if served and catalogue.find("modelslab", settings.default_model) is None:
        raise ConfigurationError(
            f"dialects.modelslab.default_model: {settings.default_model!r} is not served."
            f"{did_you_mean(settings.default_model, served)} Served under ModelsLab's names: {', '.join(served)}."
        )
