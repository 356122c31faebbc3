"""Tiny LoRAs and a tiny textual inversion, for the tiny checkpoints.

Files as people own them: a LoRA in the names of diffusers, one in those of the kohya trainers with a text encoder
part and scales of its own, one for motion modules alone, an embedding as A1111 saves it. The weights are random under
fixed seeds, and large enough that strength 1 is plain to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from models.tiny import animatediff, ltx, ltx2, wan
from models.tiny._parts import Module

#: Width between the two matrices of every LoRA here.
RANK = 4

#: Linear layers that LoRAs are usually trained for, by the ends of their names.
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
_FEED_FORWARD = ("net.0.proj", "net.2")

#: How strong the text encoder's part of a LoRA is beside the UNet's.
TEXT_ENCODER_SHARE = 0.04

Tensors = dict[str, Any]  # Any: torch is imported lazily


def transformer_lora(make: Callable[[], Module], seed: int, strength: float) -> Tensors:
    """A LoRA for attention and feed-forward layers of a transformer, in the names of diffusers."""
    return dict(_diffusers_names(make().transformer, "transformer", _ATTENTION + _FEED_FORWARD, seed, strength))


def motion_lora(seed: int, strength: float) -> Tensors:
    """A LoRA for the motion modules of AnimateDiff alone, such as the published ones for camera moves."""
    unet = animatediff.animatediff().unet
    return dict(_diffusers_names(unet, "unet", _ATTENTION, seed, strength, only="motion_modules"))


def kohya_lora(seed: int, strength: float) -> Tensors:
    """A LoRA for Stable Diffusion 1.5 as kohya's trainer saves it: UNet and text encoder, alpha half of the rank."""
    import torch

    pipeline = animatediff.animatediff()
    tensors: Tensors = {}
    # The names of transformers before 5, in which every such file in the world has been saved.
    parts = (
        ("lora_unet", pipeline.unet, strength),
        # Twelve layers one after the other: at the UNet's strength any prompt would become any other.
        ("lora_te_text_model", pipeline.text_encoder, strength * TEXT_ENCODER_SHARE),
    )
    for prefix, module, own_strength in parts:
        for name, down, up in _matrices(module, _ATTENTION, seed, own_strength, without="motion_modules"):
            key = f"{prefix}_{name.replace('.', '_')}"
            tensors |= {
                f"{key}.lora_down.weight": down,
                f"{key}.lora_up.weight": up * 2,  # undone by alpha
                f"{key}.alpha": torch.tensor(RANK / 2),
            }
    return tensors


def embedding(seed: int, vectors: int) -> Tensors:
    """A textual inversion of several vectors for the tiny CLIP, in A1111's layout."""
    import torch

    width = animatediff.animatediff().text_encoder.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    return {"emb_params": torch.randn(vectors, width, generator=generator)}  # (vectors, width)


def _diffusers_names(
    module: Module, prefix: str, ends: tuple[str, ...], seed: int, strength: float, **which: str
) -> Iterator[tuple[str, Any]]:
    for name, down, up in _matrices(module, ends, seed, strength, **which):
        yield f"{prefix}.{name}.lora_A.weight", down
        yield f"{prefix}.{name}.lora_B.weight", up


def _matrices(
    module: Module, ends: tuple[str, ...], seed: int, strength: float, *, only: str = "", without: str = "\n"
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, (RANK, in) and (out, RANK) of each linear layer whose name ends and contains as asked."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(ends) and only in name and without not in name:
            down = torch.randn(RANK, layer.in_features, generator=generator) / layer.in_features**0.5
            up = torch.randn(layer.out_features, RANK, generator=generator) * strength / RANK**0.5
            yield name, down, up


#: Name in a catalogue entry ("tiny:NAME") -> function that makes the file's tensors. Seeds and strengths are such that
#: an effect of half the strength is about half as large on each tiny checkpoint.
ADAPTERS: dict[str, Callable[[], Tensors]] = {
    "lora-wan": partial(transformer_lora, wan.wan21, seed=12, strength=0.4),
    "lora-wan-other": partial(transformer_lora, wan.wan21, seed=14, strength=0.4),
    "lora-ltx": partial(transformer_lora, ltx.ltx, seed=11, strength=0.7),
    "lora-ltx-other": partial(transformer_lora, ltx.ltx, seed=15, strength=0.7),
    "lora-ltx2": partial(transformer_lora, ltx2.ltx2, seed=11, strength=0.3),
    "lora-ltx2-other": partial(transformer_lora, ltx2.ltx2, seed=12, strength=0.3),
    "lora-animatediff": partial(kohya_lora, seed=15, strength=0.3),
    "lora-animatediff-other": partial(kohya_lora, seed=16, strength=0.3),
    "lora-animatediff-motion": partial(motion_lora, seed=12, strength=0.5),
    "embedding-animatediff": partial(embedding, seed=18, vectors=3),
}
