"""Trains the demonstration model's VAE: 8x8x4 compression into 24 channels, in the layout of Wan 2.2's.

Learns from crops around the things of the world, drawn anew for every step and partly in colours, textures and styles
that no caption names, so that it also passes on pictures that users bring and what LoRAs add.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.atelier import states
from models.atelier.optimizers import Optimizers
from models.atelier.progress import counted
from models.atelier.world import STYLES, plan, random_scene

#: Latent channels in training; `narrow` leaves fewer.
WIDE = 24

#: Seconds between two states on the disk: what an interruption costs.
SAVE_S = 120.0

CONFIG = {
    "base_dim": 16,
    "decoder_base_dim": 16,
    "dim_mult": [1, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],  # diffusers' spelling
    "is_residual": True,
    "in_channels": 12,  # 3 colours x patch of 2 x 2
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}

#: Crops of a step: (how likely, clips, frames, pixels along a side). Long ones too: what a causal VAE remembers of
#: earlier frames goes back far, and one that only saw five frames drifts after them.
_CROPS = ((0.15, 8, 5, 48), (0.35, 6, 9, 48), (0.4, 4, 17, 40), (0.1, 2, 33, 40))


def make(channels: int = WIDE) -> Any:
    """Make the VAE, untrained, with so many latent channels; Any: a diffusers.AutoencoderKLWan."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(**CONFIG, z_dim=channels, latents_mean=[0.0] * channels, latents_std=[1.0] * channels)


def crop(rng: np.random.Generator, num_frames: int, size: int) -> np.ndarray:
    """Draw a piece of a clip around a thing: (num_frames, size, size, 3), floats 0..1."""
    length = max(num_frames, int(rng.choice((9, 17, 33), p=(0.3, 0.5, 0.2))))
    height, width = ((96, 96), (80, 144), (144, 80))[rng.integers(3)]
    # VAEs know no captions: what is held out of training the model may be seen here.
    scene = random_scene(rng, held_out=rng.random() < 0.2, pairs=0.3)
    clip = plan(scene, rng, num_frames=length, height=height, width=width)
    first = int(rng.integers(0, length - num_frames + 1))
    side = min(height, width)
    way = clip.ways[rng.integers(len(clip.ways))]
    middle = first + num_frames // 2

    def around(centre: float, radius: float, end: int) -> slice:
        start = int(centre * side + rng.uniform(-1.2, 1.2) * radius * side - size / 2)
        start = min(max(0, start), end - size)
        return slice(start, start + size)

    style = str(rng.choice(STYLES, p=(0.64, 0.18, 0.18)))
    frames = clip.draw(
        style,
        frames=slice(first, first + num_frames),
        rows=around(way.y[middle], way.radius[middle], height),
        columns=around(way.x[middle], way.radius[middle], width),
    )
    return _recoloured(frames, rng) if rng.random() < 0.35 else frames


def _recoloured(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change a crop's colours, and lay slow waves over it now and then."""
    frames = frames[..., rng.permutation(3)]
    if rng.random() < 0.5:
        frames = frames * rng.uniform(0.4, 1.0, 3) + rng.uniform(0, 0.4, 3) * rng.random()
    if rng.random() < 0.5:
        row, column = np.mgrid[: frames.shape[1], : frames.shape[2]] / frames.shape[1]
        for _ in range(3):
            wave = np.sin(2 * np.pi * (rng.normal(0, 1.5) * row + rng.normal(0, 1.5) * column + rng.random()))
            frames = frames + wave[None, :, :, None] * rng.normal(0, 0.06, 3)
    return np.clip(frames, 0, 1).astype(np.float32)


def to_tensor(clips: list[np.ndarray]) -> torch.Tensor:
    """Turn clips of (F, H, W, 3), 0..1, into what the VAE takes: (B, 3, F, H, W), -1..1."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous() * 2 - 1


def fresh_clips(seed: int, count: int, *, num_frames: int = 17, height: int = 96, width: int = 96) -> list[np.ndarray]:
    """Draw whole clips that no training saw."""
    clips = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        scene = random_scene(rng, held_out=index % 4 == 0, pairs=0.25)
        clips.append(plan(scene, rng, num_frames=num_frames, height=height, width=width).draw())
    return clips


def psnr(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of each sample in dB; both (B, ...), -1..1."""
    error = ((made.float().clamp(-1, 1) - real) / 2).pow(2).flatten(1).mean(1)
    return -10 * error.log10()


def train(work: Path, *, steps: int, seed: int = 0, device: str = "cpu", say: Callable[[str], None] = print) -> Any:
    """Train the VAE, or go on where `work/vae.pt` stands; returns it. Any: a diffusers.AutoencoderKLWan."""
    work.mkdir(parents=True, exist_ok=True)
    state_file = work / "vae.pt"
    torch.manual_seed(seed)
    vae = make().to(device)
    optimizers = Optimizers(vae.named_parameters(), steps=steps, muon=0.01, adam=2e-3)
    done = 0
    if state_file.exists():
        state = states.load(state_file, device)
        vae.load_state_dict(state["vae"])
        optimizers.load_state_dict(state["optimizers"])
        done = state["done"]
        say(f"vae: going on after step {done}")
    test = to_tensor(fresh_clips(seed + 10**6, 8)).to(device)
    began, saved = time.monotonic(), time.monotonic()
    for step in counted("vae", steps, done):
        rng = np.random.default_rng([seed, step])
        torch.manual_seed(int(rng.integers(2**62)))  # of the latents' noise: the same after an interruption
        _, clips, frames, size = _CROPS[rng.choice(len(_CROPS), p=[crops[0] for crops in _CROPS])]
        real = to_tensor([crop(rng, frames, size) for _ in range(clips)]).to(device)
        loss = _loss(vae, real)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(step)
        if (step + 1) % 100 == 0:
            mean, spread, made = look(vae, test)
            say(
                f"vae {step + 1}/{steps} {time.monotonic() - began:.0f} s loss {loss.item():.4f} "
                f"PSNR {psnr(made, test).mean():.2f} dB, latents {mean.std():.2f} +- {spread.mean():.3f}"
            )
        if step + 1 == steps or time.monotonic() - saved > SAVE_S:
            saved = time.monotonic()
            state = {"vae": vae.state_dict(), "optimizers": optimizers.state_dict(), "done": step + 1}
            states.save(state, state_file)
            sheet(work / "vae.png", test, look(vae, test)[2])
    return vae


def _loss(vae: Any, real: torch.Tensor) -> torch.Tensor:
    """Reconstruct, with things and their borders counting four times as much as the background."""
    with torch.autocast(real.device.type, torch.bfloat16):
        latents = vae.encode(real).latent_dist
        made = vae.decode(latents.sample()).sample
    error = made.float() - real
    background = real.median(-1, keepdim=True).values.median(-2, keepdim=True).values
    thing = ((real - background).abs().amax(1, keepdim=True) > 0.05).float()
    weight = 1 + 3 * torch.nn.functional.max_pool3d(thing, (1, 5, 5), 1, (0, 2, 2))
    mean, log_variance = latents.mean.float(), latents.logvar.float()
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    loss: torch.Tensor = (weight * (error.abs() + 2 * error**2)).mean() / weight.mean() + 1e-4 * divergence
    return loss


@torch.no_grad()
def look(vae: Any, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the latents' means and standard deviations, and what they decode to."""
    with torch.autocast(clips.device.type, torch.bfloat16):
        latents = vae.encode(clips).latent_dist
        return latents.mean.float(), latents.std.float(), vae.decode(latents.mean).sample.float()


def sheet(path: Path, *clips: torch.Tensor) -> None:
    """Write a picture of clips, (B, 3, F, H, W) each: every second frame, the same sample of all below each other."""
    rows = []
    for sample in range(min(6, len(clips[0]))):
        for clip in clips:
            frames = ((clip[sample].float().clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 3, 0).cpu().numpy()
            rows.append(np.concatenate(list(frames[::2]), axis=1))
    Image.fromarray(np.concatenate(rows)).save(path)
