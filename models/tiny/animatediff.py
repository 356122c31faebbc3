"""Tiny AnimateDiff checkpoints: whole, and in the parts that people own."""

from __future__ import annotations

from typing import Any

from models.tiny._parts import Module, Pipeline, amplify, clip_tokenizer, seeded, smooth

_CHANNELS = (8, 8, 8, 8)
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}


def animatediff() -> Pipeline:
    """AnimateDiff on SD 1.5's layout, with 12 CLIP layers; 512x512, 16 frames, 20 steps in 12 s.

    Lean where SD 1.5 spends its time: one layer per block, one head, and attention over the picture only where it is
    16 x 16 latents (at 512 px); the motion modules are in every block, as in the real ones.
    """
    from diffusers import AnimateDiffPipeline, DDIMScheduler

    scheduler = DDIMScheduler(
        **_BETAS, beta_schedule="linear", clip_sample=False, timestep_spacing="linspace", steps_offset=1
    )
    return AnimateDiffPipeline(**_components(), motion_adapter=motion_adapter(), scheduler=scheduler)


def sd15() -> Pipeline:
    """The same without motion, as a checkpoint for images: with the scheduler that Stable Diffusion 1.5 comes with."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        **_components(),
        scheduler=PNDMScheduler(**_BETAS, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def motion_adapter() -> Module:
    """What makes `sd15` an `animatediff`, as published: a folder of its own."""
    from diffusers import MotionAdapter

    return seeded(
        4,
        lambda: _with_effect(
            MotionAdapter(
                block_out_channels=_CHANNELS,
                motion_layers_per_block=1,
                motion_norm_num_groups=2,
                motion_num_attention_heads=1,
                motion_max_seq_length=32,
            )
        ),
    )


def _components() -> dict[str, Any]:
    """What a checkpoint for images has, by diffusers' names."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = clip_tokenizer()
    text_encoder = seeded(
        1,
        lambda: CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_attention_heads=4,
                num_hidden_layers=12,
                projection_dim=16,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
    )
    unet = seeded(
        2,
        lambda: UNet2DConditionModel(
            block_out_channels=_CHANNELS,
            layers_per_block=1,
            sample_size=64,
            cross_attention_dim=16,
            norm_num_groups=2,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        ),
    )
    vae = seeded(
        3,
        lambda: AutoencoderKL(
            block_out_channels=_CHANNELS,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            latent_channels=4,
            norm_num_groups=2,
            layers_per_block=1,
        ),
    )
    for name, module in unet.named_modules():
        if name.endswith("attn2.to_out.0"):
            amplify(module, 20.0)  # the prompt's share; there are two such layers only
    amplify(unet.conv_out, 3.0)
    smooth(vae.decoder)
    amplify(vae.decoder.conv_out, 1.5)
    return {"tokenizer": tokenizer, "text_encoder": text_encoder, "unet": unet, "vae": vae}


def _with_effect(motion_adapter: Module) -> Module:
    """Fill the last layers of the motion modules: they start at zero, and the frames would not know each other."""
    import torch

    for name, parameter in motion_adapter.named_parameters():
        if ".proj_out." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return motion_adapter


#: Name in a catalogue entry ("tiny:NAME") -> function that makes the pipeline.
LAYOUTS = {"animatediff": animatediff}

#: Further folders that an entry may refer to -> function that makes what is saved there.
PARTS = {"sd15": sd15, "motion-adapter": motion_adapter}
