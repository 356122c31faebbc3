"""Pictures of videos while they are denoised, from the latents alone: a matrix in the place of the VAE.

What is shown is what the last step took for the end of the video, not the latents themselves, which are mostly noise
until late: x - sigma v for flow matching, or what the scheduler worked out by itself. It is of the size of the latents
(Wan 480p: 104 x 60), of the middle of the video, without what the VAE would add to it.

A step costs nothing but references to what it has computed; a picture is computed when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import numpy as np

from models import Pipeline
from models._around import Scheduler, Tensor
from models._latent_rgb import COLOURS

#: Longest side of a picture, pixels.
LONGEST_SIDE = 160


@dataclass(frozen=True)
class _Step:
    """What a scheduler was given and what it made of it; tensors of (B, C, F, H, W) or tokens of (B, N, C).

    Args:
        times: the timestep of every token, (B, N) or (B, 1), where they may have their own.
        stepped: all that it returned, the next latents first.
    """

    model_output: Tensor
    sample: Tensor
    times: Tensor
    stepped: Any  # a tuple, or diffusers' output class, which is indexed like one


@dataclass(frozen=True)
class _Grid:
    """Where the tokens of the video are: frames after each other, rows after each other."""

    frames: int
    height: int
    width: int
    is_last: bool  # tokens of further pictures come before those of the video, else behind them

    def middle(self, tokens: int) -> slice:
        """Return which of so many tokens are the middle frame's."""
        frame = self.height * self.width
        start = (tokens - self.frames * frame if self.is_last else 0) + self.frames // 2 * frame
        return slice(start, start + frame)


class Preview:
    """What one call of a pipeline shows of its samples.

    Args:
        pipeline: a diffusers pipeline, or one around it.
        arguments: of its call; the size of a video whose latents are tokens is read from there.
    """

    def __init__(self, pipeline: Pipeline, arguments: Mapping[str, Any]) -> None:
        self._vae = type(getattr(pipeline, "vae", None)).__name__
        self._grid = _grid(pipeline, arguments)
        self._scheduler: Scheduler = None
        self._step: _Step | None = None

    def watch(self, scheduler: Scheduler) -> None:
        """See what a scheduler does from now on; it is for one call, so nothing undoes this."""
        if scheduler is self._scheduler:
            return
        self._scheduler = scheduler
        step = scheduler.step

        @wraps(step)  # pipelines look at its signature
        def watched_step(model_output: Tensor, timestep: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            stepped = step(model_output, timestep, sample, *args, **kwargs)
            self._step = _Step(model_output, sample, kwargs.get("per_token_timesteps"), stepped)
            return stepped

        scheduler.step = watched_step

    def pictures(self) -> list[np.ndarray]:
        """Return what the last step promises: uint8 of shape (height, width, 3), one per sample.

        Nothing before the first step, and where nobody knows how latents look (`models._latent_rgb`). On a GPU this
        waits for the step to be done, once.
        """
        import torch

        if self._step is None:
            return []
        end = self._end(self._step).float()  # (B, h, w, C)
        colours = _colours(self._vae, end.shape[-1], str(end.device))
        if colours is None:
            return []
        matrix, bias = colours
        rgb = (end @ matrix + bias).movedim(-1, 1)  # (B, 3, h, w), -1..1
        longest = max(rgb.shape[2:])
        if longest > LONGEST_SIDE:
            size = [max(1, round(side * LONGEST_SIDE / longest)) for side in rgb.shape[2:]]
            rgb = torch.nn.functional.interpolate(rgb, size, mode="area")
        pixels = (rgb.nan_to_num(0.0).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).movedim(1, -1)
        return list(pixels.cpu().numpy())

    def _end(self, step: _Step) -> Tensor:
        """Return what a step took for the end of the middle frame, (B, h, w, C)."""
        scheduler, config = self._scheduler, self._scheduler.config
        if len(step.stepped) > 1:  # DDIM, Euler, LCM and others return it
            return self._middle(step.stepped[1])
        if config.get("predict_x0") or str(config.get("algorithm_type")).endswith("dpmsolver++"):
            return self._middle(scheduler.model_outputs[-1])  # UniPC and DPM++ keep it
        if not type(scheduler).__name__.startswith("FlowMatch"):
            return self._middle(step.stepped[0])  # PNDM, DEIS: as noisy as it is
        sample, velocity = self._middle(step.sample), self._middle(step.model_output)
        if step.times is not None:  # diffusers turns the velocity around there
            times = step.times[..., None].expand(-1, step.sample.shape[1], 1)
            return sample + self._middle(times) / config.num_train_timesteps * velocity
        return sample - scheduler.sigmas[scheduler.step_index - 1] * velocity

    def _middle(self, latents: Tensor) -> Tensor:
        """Return the middle frame of latents as (B, h, w, C)."""
        if latents.ndim == 5:
            return latents[:, :, latents.shape[2] // 2].movedim(1, -1)
        grid = self._grid
        if grid is None:
            raise ValueError(f"latents of shape {tuple(latents.shape)} in a call that names no size")
        frame = latents[:, grid.middle(latents.shape[1])]
        return frame.unflatten(1, (grid.height, grid.width))


def _grid(pipeline: Pipeline, arguments: Mapping[str, Any]) -> _Grid | None:
    """Return where the tokens of a call are; None for pipelines whose latents are none."""
    try:
        scale, temporal = pipeline.vae_spatial_compression_ratio, pipeline.vae_temporal_compression_ratio
        frames, height, width = (arguments[name] for name in ("num_frames", "height", "width"))
    except (AttributeError, KeyError):
        return None
    # LTXConditionPipeline puts the pictures for later frames before the video, LTX2ConditionPipeline behind it.
    is_last = type(getattr(pipeline, "_pipeline", pipeline)).__name__ == "LTXConditionPipeline"
    return _Grid((frames - 1) // temporal + 1, height // scale, width // scale, is_last)


@cache
def _colours(vae: str, channels: int, device: str) -> tuple[Tensor, Tensor] | None:
    """Return matrix and bias of a VAE's latents on a device, None when nobody knows them."""
    import torch

    colours = COLOURS.get((vae, channels))
    if colours is None:
        return None
    return torch.from_numpy(colours.matrix).to(device), torch.from_numpy(colours.bias).to(device)
