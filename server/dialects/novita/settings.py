"""What Novita's pages leave open, for the operator to choose."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from polyreel.catalogue import Catalogue
from polyreel.entries import Task
from polyreel.errors import ConfigurationError, UnknownRoute, did_you_mean

_Fps = Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)]


class NovitaSettings(BaseModel):
    """Settings under `dialects: novita:`.

    Args:
        fps: of txt2video's video, frames per second; AnimateDiff was trained at 8.
        guidance_scale: of txt2video when the client gives none, 1..30.
        link_ttl_s: how long the links of one answer are good, whole seconds; each answer signs them afresh.
        wan_num_frames, wan_fps: of wan-t2v and wan-i2v, which the page calls 5 seconds; a model that allows fewer
            frames makes as many as it allows.
        wan_t2v_model, wan_i2v_model: catalogue names of what runs wan-t2v and wan-i2v; None is the first entry of the
            family wan that can.
        img2video_model: of what runs img2video, in the place of Stable Video Diffusion; None is the first that can.
        hf_wait_s: longest time that `/v3/hf/{model}` is held, seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    fps: _Fps = 8
    guidance_scale: Annotated[float, Field(ge=1, le=30)] = 7.5
    link_ttl_s: Annotated[int, Field(ge=1)] = 3600
    wan_num_frames: Annotated[int, Field(ge=1)] = 81
    wan_fps: _Fps = 16
    wan_t2v_model: str | None = None
    wan_i2v_model: str | None = None
    img2video_model: str | None = None
    hf_wait_s: Annotated[float, Field(gt=0, le=290)] = 290.0


#: endpoint: (its setting, the family that it is called after or "", what the model must be able to do)
_ENDPOINTS: dict[str, tuple[str, str, Task]] = {
    "wan-t2v": ("wan_t2v_model", "wan", "t2v"),
    "wan-i2v": ("wan_i2v_model", "wan", "i2v"),
    "img2video": ("img2video_model", "", "i2v"),
}


def model_of(endpoint: str, catalogue: Catalogue, settings: NovitaSettings) -> str:
    """Return the catalogue name of the entry that runs an endpoint that names no model.

    Raises:
        UnknownRoute: no entry can.
    """
    setting, family, task = _ENDPOINTS[endpoint]
    chosen = getattr(settings, setting)
    if chosen:
        return str(chosen)
    for name, entry in catalogue.models.items():
        if family in ("", entry.family) and task in entry.tasks:
            return name
    raise UnknownRoute(f"No model of this server can run {endpoint}.")


def check(catalogue: Catalogue, settings: NovitaSettings) -> None:
    """Stop the start when an endpoint is to run a model that is not served or cannot do it.

    Raises:
        ConfigurationError: names the setting and what can be set.
    """
    for setting, _, task in _ENDPOINTS.values():
        name = getattr(settings, setting)
        able = [entry_name for entry_name, entry in catalogue.models.items() if task in entry.tasks]
        if name is not None and name not in able:
            raise ConfigurationError(
                f"dialects.novita.{setting}: {name!r} is not a model with the task {task}."
                f"{did_you_mean(name, able)} Those that are: {', '.join(able) or 'none'}."
            )


def settings_of(request: Request) -> NovitaSettings:
    """Return the settings of the app that serves `request`."""
    found: NovitaSettings = request.app.state.dialect_settings["novita"]
    return found
