"""Trains the demonstration model, part after part: VAE, clips as its latents, denoiser, styles; writes the checkpoint.

Every part goes on where an interrupted run stopped. Says what it does, one line at a time, and keeps those lines in
`work/training.log`; pictures of how far it is lie beside it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.atelier import assemble, figures, learning, loras, narrow, pool, progress, vae
from models.atelier.denoiser import Denoiser, generate
from models.atelier.figures import prompts_of, scenes, score
from models.atelier.learning import statistics
from models.atelier.pool import KINDS, PICTURES, SHARD
from models.atelier.world import STYLES


@dataclass(frozen=True)
class Plan:
    """What to train. `models.atelier.__main__` has the numbers of a whole training.

    Args:
        work: folder for states, clips, pictures and the log.
        folder: where the checkpoint goes.
        clips: how many the denoiser learns from.
        start: a checkpoint folder to go on from, in place of nothing: its VAE stays as it is.
        device: "cpu", "cuda" or "cuda:N".
        processes: how many train the denoiser together, of one thread each.
        compiled: compile the transformer's blocks, for about a quarter more speed after minutes of compiling.
    """

    work: Path
    folder: Path
    vae_steps: int
    denoiser_steps: int
    lora_steps: int
    clips: int
    seed: int = 0
    start: Path | None = None
    device: str = "cpu"
    processes: int = 1
    compiled: bool = False


def train(plan: Plan) -> None:
    """Train what is not trained yet, and write the checkpoint."""
    plan.work.mkdir(parents=True, exist_ok=True)
    say = partial(_say, plan.work / "training.log")
    say(f"torch {torch.__version__} on {plan.device}, {torch.get_num_threads()} threads, seed {plan.seed}")
    if plan.start and (plan.work / "denoiser.pt").exists():
        say(f"not starting from {plan.start}: {plan.work} has a training under way; for a new one name another --work")
    elif plan.start:
        say(f"starting from {plan.start}")
        _start(plan.work, plan.start, plan.seed)
    if not (plan.work / "narrow.pt").exists():
        wide = vae.train(plan.work, steps=plan.vae_steps, seed=plan.seed, device=plan.device, say=say)
        narrow.keep(plan.work, narrow.narrow(wide.eval(), seed=plan.seed))
    coder = narrow.kept(plan.work, plan.device)
    fill(plan.work / "pool", coder, plan.clips, say)
    learnt = learning.train(
        plan.work,
        steps=plan.denoiser_steps,
        seed=plan.seed,
        device=plan.device,
        processes=plan.processes,
        compiled=plan.compiled,
        say=say,
        look=partial(_look, plan.work),
    )
    styles = {
        style: loras.train(
            plan.work,
            learnt,
            coder,
            style,
            over=plan.denoiser_steps,
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


def _say(log: Path, line: str) -> None:
    """Print a line and keep it."""
    line = f"{time.strftime('%H:%M:%S')} {line}"
    progress.write(line)
    with log.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _start(work: Path, checkpoint: Path, seed: int) -> None:
    """Take the weights of a checkpoint for what has been trained so far, and drop what was made with others."""
    for made in work.glob("pool*"):
        shutil.rmtree(made)
    for kept in work.glob("lora-*.pt"):
        kept.unlink()
    pipeline = figures.load(checkpoint)
    narrow.keep(work, pipeline.vae)
    learning.start_from(work, pipeline.transformer, pipeline.text_encoder, seed=seed)


def fill(folder: Path, coder: Any, clips: int, say: Callable[[str], None]) -> None:
    """Draw and encode what is missing of the clips, in the kinds' shares."""
    began = time.monotonic()
    for kind in KINDS:
        count = max(1, round(kind.share * clips * (PICTURES if kind.num_frames == 1 else 1)))
        for shard in progress.counted(f"clips {kind.name}", -(-count // SHARD)):
            pool.fill(folder, coder, kind, shard, clips=min(SHARD, count - shard * SHARD))
        say(f"clips {kind.name}: {count}, {time.monotonic() - began:.0f} s")


@torch.no_grad()
def _look(work: Path, average: Denoiser) -> str:
    """Make some clips with the averaged weights, draw them, and say how often they are right."""
    coder = narrow.kept(work, average.transformer.device)
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
