"""The second pass of an upscaled video: the pipeline of the first pass again, started from frames instead of noise.

Frames of the target size are encoded, noised to where the last `num_steps` of the schedule begin, and denoised from
there, so that the model adds the detail which resizing cannot (SDEdit, arXiv 2108.01073). diffusers'
WanVideoToVideoPipeline does this for one transformer and one timestep per video only. Here the first pass's own
pipeline runs, so every layout of it (two transformers, a timestep per token, pictures) runs a second time as it is.

Knows Wan's VAE and flow matching schedulers; knows no request beyond `Upscale`.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np

from models import Pipeline
from models._around import AroundPipeline, Scheduler, Tensor, encode
from polyreel.request import Upscale


def num_steps(upscale: Upscale | None) -> int:
    """Return how many denoising steps the second pass runs; 0 is no second pass, only a resize at most."""
    if upscale is None or upscale.strength <= 0:
        return 0
    steps = int(upscale.strength * upscale.num_inference_steps)  # as diffusers' own video to video pipelines count
    return min(max(steps, 1), upscale.num_inference_steps)


class SecondPassPipeline(AroundPipeline):
    """A pipeline that continues from frames; called like the one that it wraps, through `models._run.run_pipeline`.

    Args:
        pipeline: a WanPipeline or WanImageToVideoPipeline.
        frames: uint8 of shape (F, H, W, 3), RGB: a legal number of frames at the size that the call asks for.
        num_steps: how many of the call's `num_inference_steps` run, 1 or more: the last ones.
    """

    def __init__(self, pipeline: Pipeline, frames: np.ndarray, num_steps: int) -> None:
        super().__init__(pipeline)
        self._frames = frames
        self._num_steps = num_steps

    def __call__(self, *, num_inference_steps: int, generator: Any, **arguments: Any) -> Any:
        """Run the last steps of the wrapped pipeline's call.

        Args:
            num_inference_steps: of the whole schedule, at least `num_steps`.
            generator: a torch.Generator, for the noise.
            arguments: of the wrapped pipeline's call.

        Returns:
            The wrapped pipeline's output.
        """
        from diffusers.utils.torch_utils import randn_tensor

        clean = latents_of(self._pipeline, self._frames)
        noise = randn_tensor(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
        start_late(self.scheduler, num_inference_steps - self._num_steps)
        latents = noised(self.scheduler, clean, noise, num_inference_steps)
        return self._pipeline(
            num_inference_steps=num_inference_steps, generator=generator, latents=latents, **arguments
        )


def latents_of(pipeline: Pipeline, frames: np.ndarray) -> Tensor:
    """Return the latents of frames as Wan's transformer sees them.

    Args:
        frames: uint8 of shape (F, H, W, 3).

    Returns:
        float32 of shape (1, z_dim, latent frames, H / spatial scale, W / spatial scale).
    """
    import torch

    latents = encode(pipeline, frames)
    config = pipeline.vae.config
    mean, std = (
        torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    return (latents - mean) / std


def start_late(scheduler: Scheduler, skipped: int) -> None:
    """Make a scheduler leave out the first `skipped` steps of every schedule that it is given from now on.

    A pipeline loops over `scheduler.timesteps`, so it must see the tail alone. `step` must see all of it: it counts
    its place from the start, and UniPC, for one, fails on a table that ends before its index does. Nothing undoes
    this: it is for a scheduler that is used for one call.

    Args:
        scheduler: of diffusers, with `set_begin_index`.
        skipped: denoising steps, fewer than the schedule will have.
    """
    set_timesteps, set_begin_index, step = scheduler.set_timesteps, scheduler.set_begin_index, scheduler.step
    first = skipped * scheduler.order
    whole: list[Tensor] = []

    @wraps(set_timesteps)  # pipelines look at its signature
    def set_timesteps_but_show_the_tail(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        whole[:] = [scheduler.timesteps]
        set_begin_index(first)
        scheduler.timesteps = scheduler.timesteps[first:]

    @wraps(set_begin_index)
    def set_begin_index_in_the_tail(begin_index: int = 0) -> None:
        set_begin_index(first + begin_index)

    @wraps(step)
    def step_in_the_whole(*args: Any, **kwargs: Any) -> Any:
        [scheduler.timesteps] = whole
        return step(*args, **kwargs)

    scheduler.set_timesteps = set_timesteps_but_show_the_tail
    scheduler.set_begin_index = set_begin_index_in_the_tail
    scheduler.step = step_in_the_whole


def noised(scheduler: Scheduler, clean: Tensor, noise: Tensor, num_inference_steps: int) -> Tensor:
    """Mix latents with noise as much as the first step that `scheduler` shows expects."""
    scheduler.set_timesteps(num_inference_steps, device=clean.device)
    start = scheduler.timesteps[:1]
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(clean, noise, start)
    return scheduler.scale_noise(clean, start, noise)  # FlowMatchEulerDiscreteScheduler's name for it
