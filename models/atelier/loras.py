"""Trains the demonstration model's LoRAs: styles that the world can draw and that the model never saw in a caption."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.atelier import states
from models.atelier.denoiser import Denoiser
from models.atelier.learning import Pool, loss_of, statistics
from models.atelier.optimizers import Optimizers
from models.atelier.pool import KINDS, SHARD, fill
from models.atelier.progress import counted

RANK = 8

_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]

#: What a style is shown in: most of it at the usual length and size.
_KINDS = tuple(kind for kind in KINDS if not kind.spans and kind.num_frames == 17)


def train(
    work: Path,
    denoiser: Denoiser,
    vae: Any,
    style: str,
    *,
    over: int,
    steps: int,
    clips: int = 750,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, torch.Tensor]:
    """Train one style over a finished denoiser, or take what `work` has of it.

    Args:
        style: one of `world.STYLES`.
        over: how many steps the denoiser was trained for; a LoRA of a denoiser of others is made anew.
        clips: how many it is shown in; a style is learnt from few.

    Returns:
        The LoRA's tensors, in half precision, as diffusers names them.
    """
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    kept, made_as = work / f"lora-{style}.pt", {"over": over, "steps": steps, "clips": clips, "seed": seed}
    if kept.exists() and (state := states.load(kept))["made_as"] == made_as:
        say(f"{style}: trained before")
        tensors: dict[str, torch.Tensor] = state["tensors"]
        return tensors
    folder = work / f"pool-{style}"
    shares = np.array([kind.share for kind in _KINDS]) / sum(kind.share for kind in _KINDS)
    for kind, share in zip(_KINDS, shares, strict=True):
        count = max(1, round(share * clips))
        for shard, start in enumerate(range(0, count, SHARD)):
            fill(folder, vae, kind, shard, clips=min(SHARD, count - start), style=style)
    pool = Pool(folder, *statistics(work / "pool"))
    denoiser.requires_grad_(False)
    transformer = denoiser.transformer
    torch.manual_seed(seed)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=_LAYERS), adapter_name=style)
    learnt = [(name, parameter) for name, parameter in denoiser.named_parameters() if parameter.requires_grad]
    # AdamW alone: the two halves of a LoRA are no matrices whose directions should learn at one pace.
    optimizers = Optimizers(learnt, steps=steps, muon=0.0, adam=2e-3, warm_up=20, matrices=False)
    began, losses = time.monotonic(), []
    for step in counted(style, steps):
        rng = np.random.default_rng([seed, 6, step])
        kind = _KINDS[rng.choice(len(_KINDS), p=shares)]
        loss = loss_of(denoiser, pool, rng, kind)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(step)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            say(f"{style} {step + 1}/{steps} {time.monotonic() - began:.0f} s loss {np.mean(losses[-50:]):.4f}")
    learnt_tensors = get_peft_model_state_dict(transformer, adapter_name=style).items()
    tensors = {f"transformer.{name}": tensor.detach().half().cpu().contiguous() for name, tensor in learnt_tensors}
    transformer.unload_lora()  # the layers are plain again, as the checkpoint needs them
    states.save({"tensors": tensors, "made_as": made_as}, kept)
    return tensors
