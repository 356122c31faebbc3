"""A pipeline wrapped so that it is watched like itself, and frames through its VAE: for passes that start from frames.

Knows no family: what the latents are scaled by, and which part of the schedule runs, is theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models import Pipeline

#: Any: torch and diffusers are imported lazily.
Scheduler = Any
Tensor = Any


class AroundPipeline:
    """A pipeline with something to do before or after its call; watched, and given schedulers, like itself.

    Args:
        pipeline: a diffusers pipeline.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @property
    def scheduler(self) -> Scheduler:
        """The wrapped pipeline's; `run_pipeline` gives it a new one for every call."""
        return self._pipeline.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler) -> None:
        self._pipeline.scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        """Return what else the wrapped pipeline has: its modules are watched through this one."""
        return getattr(self._pipeline, name)


def encode(pipeline: Pipeline, frames: np.ndarray) -> Tensor:
    """Return what a video VAE makes of frames: its mode, so that none of the generator's noise is spent here.

    Args:
        frames: uint8 of shape (F, H, W, 3), RGB, as many and as large as the VAE takes.

    Returns:
        float32 of shape (1, channels, latent frames, H / spatial scale, W / spatial scale), not normalised.
    """
    import torch
    from diffusers.utils.torch_utils import get_module_execution_device

    vae = pipeline.vae
    video = torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0)  # (1, 3, F, H, W)
    video = video.to(device=get_module_execution_device(vae), dtype=vae.dtype) / 127.5 - 1
    with torch.no_grad():
        return vae.encode(video).latent_dist.mode().float()
