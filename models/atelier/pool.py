"""Clips that the denoiser learns from: drawn and encoded once, kept as latents, described anew for every step.

A pool is a folder of shards, one `Kind` of clip each. Latents are kept as the VAE gives them, without the
normalisation of its config. A clip's scene is drawn from its seed alone, so captions need no storage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.atelier import states
from models.atelier.captions import caption
from models.atelier.vae import to_tensor
from models.atelier.world import BACKGROUNDS, COLOURS, CORNERS, MOTIONS, SHAPES, Clip, Scene, plan, random_scene

#: Most clips in a shard.
SHARD = 64


@dataclass(frozen=True)
class Kind:
    """A kind of clip: its size, how often a step takes it, and whether it has spans of several captions."""

    num_frames: int
    height: int
    width: int
    share: float
    spans: bool = False

    @property
    def name(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}{'-spans' if self.spans else ''}"

    @property
    def latent_frames(self) -> int:
        return (self.num_frames - 1) // 4 + 1

    @property
    def tokens(self) -> int:
        """How many tokens the transformer sees: 16 x 16 pixels of 4 frames each."""
        return self.latent_frames * (self.height // 16) * (self.width // 16)


#: Single pictures are the first frames of clips: a step sees five times as many things in them, and learns from those
#: what things look like, while it learns from clips how they move.
KINDS = (
    Kind(17, 96, 96, 0.42),
    Kind(17, 80, 144, 0.10),
    Kind(17, 144, 80, 0.10),
    Kind(9, 96, 96, 0.08),
    Kind(33, 96, 96, 0.08),
    Kind(33, 80, 144, 0.02),
    Kind(33, 144, 80, 0.02),
    Kind(17, 96, 96, 0.06, spans=True),
    Kind(33, 96, 96, 0.02, spans=True),
    Kind(1, 96, 96, 0.7),
    Kind(1, 80, 144, 0.14),
    Kind(1, 144, 80, 0.14),
)


#: How many more single pictures than clips there are of the same share; they cost as much less.
PICTURES = 5


@dataclass(frozen=True)
class Sample:
    """A clip of the pool, before its caption is written."""

    clip: Clip

    @property
    def labels(self) -> tuple[int, int]:
        """Which of `SHAPES` and `MOTIONS` the only thing is and does; -1 where there are two, or where that changes."""
        [(scene, num_frames), *others] = self.clip.spans
        if len(scene.things) > 1:
            return -1, -1
        thing = scene.things[0]
        changes = any(other.things[0].shape != thing.shape for other, _length in others)
        return -1 if changes else SHAPES.index(thing.shape), MOTIONS.index(thing.motion) if num_frames > 1 else -1

    @property
    def places(self) -> np.ndarray:
        """Where things are in each latent frame: (2, T, 5), NaN for a second thing that is not there.

        x and y of the centre and the radius, in tokens of 16 pixels; cosine and sine of the angle times the number of
        corners, so that a shape that looks the same has the same.
        """
        found = np.full((2, (len(self.clip.ways[0].x) - 1) // 4 + 1, 5), np.nan, np.float32)
        tokens = min(self.clip.height, self.clip.width) / 16
        for thing, way, place in zip(self.clip.spans[0][0].things, self.clip.ways, found, strict=False):
            angle = way.angle[::4] * CORNERS[thing.shape]
            place[:] = np.stack(
                [*(v[::4] * tokens for v in (way.x, way.y, way.radius)), np.cos(angle), np.sin(angle)], 1
            )
        return found

    def captions(self, rng: np.random.Generator) -> tuple[list[str], list[int]]:
        """Return the captions of the clip's spans, and which of them holds in each latent frame."""
        if len(self.clip.spans) == 1:
            scene, num_frames = self.clip.spans[0]
            return [caption(scene, rng)], [0] * ((num_frames - 1) // 4 + 1)
        words = [caption(scene, rng) for scene, _length in self.clip.spans]
        span_of = np.repeat(np.arange(len(words)), [length for _scene, length in self.clip.spans])
        return words, [int(span) for span in span_of[::4]]


def sample_of(kind: Kind, seed: int) -> Sample:
    """Draw the clip of a seed, the same every time."""
    rng = np.random.default_rng([77, seed])
    scene = random_scene(rng, pairs=0.0 if kind.spans else 0.15)
    spans: Any = _spans(scene, rng, kind) if kind.spans else scene
    return Sample(plan(spans, rng, num_frames=kind.num_frames, height=kind.height, width=kind.width))


def _spans(scene: Scene, rng: np.random.Generator, kind: Kind) -> list[tuple[Scene, int]]:
    """Let a scene change looks once or twice, between two latent frames."""
    cuts = np.sort(rng.choice(np.arange(1, kind.latent_frames), rng.integers(1, min(3, kind.latent_frames - 1)), False))
    ends = [*(1 + 4 * (cut - 1) for cut in cuts), kind.num_frames]
    spans, start = [], 0
    for end in ends:
        spans.append((scene, int(end - start)))
        start = end
        while True:
            [thing] = scene.things
            changed = replace(thing, colour=str(rng.choice(list(COLOURS))))
            if rng.random() < 0.25:
                changed = replace(changed, shape=str(rng.choice(SHAPES)))
            if (changed.shape, changed.motion) == ("circle", "spinning") or changed.colour == thing.colour:
                continue
            background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.25 else scene.background
            if not Scene((changed,), background).held_out:
                scene = Scene((changed,), background)
                break
    return spans


@torch.no_grad()
def fill(folder: Path, vae: Any, kind: Kind, shard: int, *, clips: int = SHARD, style: str = "plain") -> None:
    """Draw and encode one shard, if it is not there yet.

    Holds `latents` (clips, C, T, h, w) in bfloat16 and `thing` (clips, T, h, w), where a clip is not all background.

    Args:
        clips: 1..SHARD.
        style: one of `world.STYLES`.
    """
    path = folder / kind.name / f"{shard:05}.pt"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    latents, things = [], []
    for start in range(0, clips, 16):
        seeds = range(shard * SHARD + start, shard * SHARD + min(start + 16, clips))
        pixels = to_tensor([sample_of(kind, seed).clip.draw(style) for seed in seeds])
        with torch.autocast(vae.device.type, torch.bfloat16):
            latents.append(vae.encode(pixels.to(vae.device)).latent_dist.mean.bfloat16().cpu())
        things.append(_thing(pixels))
    states.save({"latents": torch.cat(latents), "thing": torch.cat(things)}, path)


def _thing(pixels: torch.Tensor) -> torch.Tensor:
    """Return which latent positions are not all background: (B, T, h, w)."""
    corner = pixels.median(-1, keepdim=True).values.median(-2, keepdim=True).values
    away = ((pixels - corner).abs().amax(1, keepdim=True) > 0.1).float()
    away = torch.cat([away[:, :, :1].repeat(1, 1, 3, 1, 1), away], dim=2)  # the first latent frame is one picture
    return torch.nn.functional.max_pool3d(away, (4, 8, 8))[:, 0] > 0


def shards(folder: Path, kind: Kind) -> list[Path]:
    """Return the shards of a kind that are there."""
    return sorted((folder / kind.name).glob("*.pt"))
