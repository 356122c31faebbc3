"""Trains the demonstration model, part after part: VAE, clips as its latents, denoiser, styles; writes the checkpoint.

Every part goes on where an interrupted run stopped. Says what it does, one line at a time, and keeps those lines in
`work/training.log`; pictures of how far it is lie beside it.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.atelier import assemble, denoiser, figures, loras, narrow, pool, vae
from models.atelier.denoiser import Denoiser, generate, statistics
from models.atelier.figures import prompts_of, scenes, score
from models.atelier.pool import KINDS, SHARD
from models.atelier.world import STYLES


@dataclass(frozen=True)
class Plan:
    """What to train. The numbers of the shipped checkpoint are the command's defaults.

    Args:
        work: folder for states, clips, pictures and the log.
        folder: where the checkpoint goes.
        clips: how many the denoiser learns from.
        device: "cpu", "cuda" or "cuda:N".
        compiled: compile the transformer's blocks, for about a quarter more speed after minutes of compiling.
    """

    work: Path
    folder: Path
    vae_steps: int
    denoiser_steps: int
    lora_steps: int
    clips: int
    seed: int = 0
    device: str = "cpu"
    compiled: bool = False


def train(plan: Plan) -> None:
    """Train what is not trained yet, and write the checkpoint."""
    plan.work.mkdir(parents=True, exist_ok=True)
    say = _log(plan.work / "training.log")
    say(f"torch {torch.__version__} on {plan.device}, {torch.get_num_threads()} threads, seed {plan.seed}")
    wide = vae.train(plan.work, steps=plan.vae_steps, seed=plan.seed, device=plan.device, say=say).eval()
    coder = narrow.narrowed(plan.work, wide, seed=plan.seed)
    fill(plan.work / "pool", coder, plan.clips, say)
    learnt = denoiser.train(
        plan.work,
        steps=plan.denoiser_steps,
        seed=plan.seed,
        device=plan.device,
        say=say,
        compiled=plan.compiled,
        test=lambda average: _look(plan.work, coder, average),
    )
    styles = {
        style: loras.train(
            plan.work,
            learnt,
            coder,
            style,
            steps=plan.lora_steps,
            clips=plan.clips // 12,
            seed=plan.seed,
            say=say,
        )
        for style in STYLES[1:]
    }
    assemble.write(plan.folder, coder.cpu(), learnt.cpu(), statistics(plan.work / "pool"), styles)
    say(f"wrote {plan.folder}")
    shutil.copyfile(plan.work / "training.log", plan.folder / "training.log")


def _log(path: Path) -> Callable[[str], None]:
    """Return what prints a line and keeps it."""

    def say(line: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {line}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        with path.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    return say


def fill(folder: Path, coder: Any, clips: int, say: Callable[[str], None]) -> None:
    """Draw and encode what is missing of the clips, in the kinds' shares."""
    began = time.monotonic()
    for kind in KINDS:
        count = max(1, round(kind.share * clips))
        for shard, start in enumerate(range(0, count, SHARD)):
            pool.fill(folder, coder, kind, shard, clips=min(SHARD, count - start))
        say(f"clips {kind.name}: {count}, {time.monotonic() - began:.0f} s")


@torch.no_grad()
def _look(work: Path, coder: Any, average: Denoiser) -> str:
    """Make some clips with the averaged weights, draw them, and say how often they are right."""
    mean, std = (values.view(1, -1, 1, 1, 1) for values in statistics(work / "pool"))
    said = []
    for name in ("trained", "held_out"):
        told = scenes(name, 16)
        latents = generate(average, [[prompt] for prompt in prompts_of(told)], KINDS[0], seed=3)
        with torch.autocast(latents.device.type, torch.bfloat16):
            made = coder.decode(latents * std.to(latents) + mean.to(latents)).sample.float().cpu()
        vae.sheet(work / f"denoiser-{name}.png", made)
        clips = [clip.numpy() for clip in ((made.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 4, 1)]
        found = score(told, clips)
        said.append(f"{name} " + ", ".join(f"{word} {getattr(found, word):.2f}" for word in figures.WORDS))
    return "; ".join(said)
