"""Puts the trained parts together as a checkpoint folder in diffusers layout, in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.atelier.denoiser import FLOW_SHIFT, Denoiser


def write(
    folder: Path,
    vae: Any,
    denoiser: Denoiser,
    statistics: tuple[torch.Tensor, torch.Tensor],
    styles: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    """Write the checkpoint, and its LoRAs as `loras/STYLE.safetensors`.

    Args:
        vae: a diffusers.AutoencoderKLWan.
        statistics: mean and standard deviation of each latent channel, which pipelines find in the VAE's config.
    """
    from diffusers import UniPCMultistepScheduler, WanPipeline
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor
    from safetensors.torch import save_file

    mean, std = ([round(value, 5) for value in values.tolist()] for values in statistics)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    denoiser.transformer.set_attn_processor(WanAttnProcessor())
    pipeline = WanPipeline(
        tokenizer=denoiser.tokenizer,
        text_encoder=denoiser.text_encoder.eval(),
        transformer=denoiser.transformer.eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
        ),
        expand_timesteps=True,
    )
    for part in (pipeline.vae, pipeline.transformer, pipeline.text_encoder):
        part.half()
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "loras").mkdir(exist_ok=True)
    for style, tensors in styles.items():
        save_file(dict(tensors), folder / "loras" / f"{style}.safetensors", metadata={"format": "pt"})
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes them for their owner alone, and images run as another
