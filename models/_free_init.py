"""FreeInit: denoise a video several times, each time from noise that keeps the slow part of the last result.

A video model is trained on noised videos, whose low frequencies are alike from frame to frame, and starts from noise
that has no such thing. Starting again from the noised result, with only its high frequencies drawn anew, closes that
gap: frames agree better, at as many times the cost. The first iteration is the plain run.

diffusers' own `enable_free_init` is not enough in three ways: it draws the new high frequencies from the call's own
generator, so they cannot have a seed of their own; it noises twice over under schedulers that count in sigmas (Euler:
the first noise is scaled already); and it fills its filter one number at a time.

Source: FreeInit, arXiv 2312.07537, section 3.3; diffusers.pipelines.free_init_utils
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from models import Pipeline

#: How often the video is denoised: diffusers' default; the paper sees little gain beyond.
NUM_ITERATIONS = 3

#: The filter of the paper's experiments, and diffusers' default: Butterworth, order 4, a quarter of the band.
_ORDER, _STOP_FREQUENCY = 4, 0.25

Tensor = Any  # torch is imported lazily


@contextmanager
def free_init(pipeline: Pipeline, seed: int) -> Iterator[None]:
    """Run with FreeInit, and leave the pipeline without it whatever happens: it is a state of the pipeline.

    Args:
        pipeline: with diffusers' FreeInitMixin.
        seed: of the high frequencies that are drawn between the iterations, 0..2**63-1. All else is drawn as in a
            plain run.
    """
    import torch

    # On the CPU, like the generator of the call: the same seed gives the same video with and without a GPU.
    generator = torch.Generator("cpu").manual_seed(seed)
    first_noise: Tensor = None

    def start_iteration(
        latents: Tensor, iteration: int, num_inference_steps: int, device: Any, dtype: Any, _generator: Any
    ) -> tuple[Tensor, Tensor]:
        """Stand in for the mixin's `_apply_free_init`; latents are (B, C, F, H, W)."""
        nonlocal first_noise
        scheduler = pipeline.scheduler
        scheduler.set_timesteps(num_inference_steps, device=device)  # also forgets the steps of the last iteration
        if iteration == 0:
            first_noise = latents.float() / scheduler.init_noise_sigma
            return latents, scheduler.timesteps
        start = scheduler.timesteps[:1].repeat(latents.shape[0])
        noised = scheduler.add_noise(latents.float(), first_noise, start)
        drawn = torch.randn(latents.shape, generator=generator).to(device) * scheduler.init_noise_sigma
        return mix(noised, drawn).to(dtype), scheduler.timesteps

    pipeline.enable_free_init(num_iters=NUM_ITERATIONS, use_fast_sampling=False)
    pipeline._apply_free_init = start_iteration
    try:
        yield
    finally:
        pipeline.disable_free_init()
        del pipeline._apply_free_init


def mix(slow: Tensor, fast: Tensor) -> Tensor:
    """Return the low frequencies, in space and time, of `slow` with the high ones of `fast`, both (B, C, F, H, W)."""
    from torch import fft

    axes = (-3, -2, -1)
    passes = low_pass(tuple(slow.shape[-3:])).to(slow.device)
    low = fft.fftshift(fft.fftn(slow, dim=axes), dim=axes) * passes
    high = fft.fftshift(fft.fftn(fast, dim=axes), dim=axes) * (1 - passes)
    return fft.ifftn(fft.ifftshift(low + high, dim=axes), dim=axes).real


def low_pass(shape: tuple[int, ...]) -> Tensor:
    """Return the share of each frequency that passes, 0..1, of shape (F, H, W), frequency 0 in the middle."""
    import torch

    frames, rows, columns = (2 * torch.arange(size) / size - 1 for size in shape)
    distance = frames[:, None, None] ** 2 + rows[None, :, None] ** 2 + columns[None, None, :] ** 2
    return 1 / (1 + (distance / _STOP_FREQUENCY**2) ** _ORDER)
