"""Finds how the VAE's latents look, for the pictures that are shown while a video is made.

The numbers stand in `models/_latent_rgb.py`. A VAE that was trained anew has others: which component is which channel,
and with which sign, is chance. `python -m models.atelier colours` prints them as they stand there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.atelier.figures import load
from models.atelier.vae import fresh_clips, to_tensor


@torch.no_grad()
def latents_and_colours(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Encode fresh clips of a checkpoint's VAE.

    Returns:
        Latents as the denoiser sees them, (N, channels), and the mean colours of the pixels that each stands for,
        (N, 3) in -1..1.
    """
    vae = load(folder).vae
    pixels = to_tensor(fresh_clips(16_000_000, count))  # seeds of its own, as `figures._SEEDS`
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    latents = (vae.encode(pixels).latent_dist.mode() - mean) / std
    first, rest = pixels[:, :, :1], pixels[:, :, 1:]  # the first latent frame is one picture, the others are four each
    colours = torch.cat([first, torch.nn.functional.avg_pool3d(rest, (4, 1, 1))], dim=2)
    colours = torch.nn.functional.avg_pool3d(colours, (1, 8, 8))
    return tuple(values.movedim(1, -1).flatten(0, -2).numpy() for values in (latents, colours))  # type: ignore[return-value]


def table(folder: Path, count: int = 64) -> str:
    """Fit colours to latents by least squares, and write the matrix and the bias as `models/_latent_rgb.py` does."""
    latents, colours = latents_and_colours(folder, count)
    fitted, *_rest = np.linalg.lstsq(np.pad(latents, ((0, 0), (0, 1)), constant_values=1), colours, rcond=None)
    rows = [" ".join(str(round(10_000 * value)) for value in row) for row in fitted]
    return ", ".join(rows[:-1]) + "\n+ " + rows[-1]
