"""Tiny LTX-Video checkpoints, and the latent upsampler beside them. LTX-2 is in `ltx2.py`."""

from __future__ import annotations

from typing import Any

from models.tiny import ltx2 as _ltx2
from models.tiny._parts import Module, Pipeline, amplify, clear, seeded, share, smooth, t5_sizes, t5_tokenizer

#: What the VAE of 0.9.5 and later encodes with; before that, four blocks that all scale with strided convolutions.
_ENCODER_095 = {
    "block_out_channels": (8, 8, 8, 8, 8),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "layers_per_block": (1, 1, 1, 1, 1),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "spatio_temporal_scaling": (True, True, True, True),
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
_ENCODER_091 = {
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": (1, 1, 1, 1, 1),
    "spatio_temporal_scaling": (True, True, True, False),
}


def ltx() -> Pipeline:
    """LTX-Video 0.9.5: 32x32x8 compression, patch 1; 512x512, 25 frames, 20 steps in 3 s on one CPU thread."""
    from diffusers import LTXPipeline

    return LTXPipeline(vae=_vae(_ENCODER_095, contrast=1.0), **_around(_shifting()))


def ltx_091() -> Pipeline:
    """LTX-Video 0.9.1: the older VAE, whose transformer knows pictures for the first frame only."""
    from diffusers import LTXPipeline

    return LTXPipeline(vae=_vae(_ENCODER_091, contrast=3.0), **_around(_shifting()))


def ltx_condition() -> Pipeline:
    """LTX-Video 0.9.7 and later: pictures for any frames, a schedule that is not shifted, a decoder that narrows."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline

    decoder = {
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (False, False, False, False),
        "upsample_residual": (False, False, False),  # would turn channels into white noise
        "upsample_factor": (2, 2, 2),
    }
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False)
    return LTXConditionPipeline(vae=_vae(_ENCODER_095 | decoder, contrast=6.0), **_around(scheduler))


def ltx_upsampler() -> Module:
    """Twice the height and width of LTX-Video's latents, as Lightricks/ltxv-spatial-upscaler-0.9.7."""
    from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

    return seeded(4, lambda: LTXLatentUpsamplerModel(in_channels=16, mid_channels=32, num_blocks_per_stage=1))


def _shifting() -> Module:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def _around(scheduler: Module) -> dict[str, Module]:
    """Return all components but the VAE."""
    from diffusers import LTXVideoTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = t5_tokenizer(max_length=128)
    transformer = seeded(
        2,
        lambda: LTXVideoTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=4,
            caption_channels=32,
        ),
    )
    amplify(transformer.caption_projection, 1.5)
    return {
        "tokenizer": tokenizer,
        "text_encoder": seeded(1, lambda: T5EncoderModel(T5Config(**t5_sizes(len(tokenizer))))),
        "transformer": transformer,
        "scheduler": scheduler,
    }


def _vae(changes: dict[str, Any], *, contrast: float) -> Module:
    """Return a VAE with these settings (Any)."""
    from diffusers import AutoencoderKLLTXVideo

    settings = {
        "decoder_block_out_channels": (8, 8, 8, 8),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True, False),
        **changes,
    }
    vae = seeded(
        3,
        lambda: AutoencoderKLLTXVideo(
            latent_channels=16, timestep_conditioning=True, patch_size=4, patch_size_t=1, **settings
        ),
    )
    smooth(vae.decoder)
    clear(parameter for name, parameter in vae.decoder.named_parameters() if "scale_shift_table" in name)
    for block in vae.decoder.up_blocks:
        for upsampler in block.upsamplers or ():
            share(upsampler.conv, 8)  # 2 x 2 x 2
    share(vae.decoder.conv_out, 16)  # 4 x 4
    amplify(vae.decoder.conv_out, contrast)
    return vae


#: Name in a catalogue entry ("tiny:NAME") -> function that makes the pipeline.
LAYOUTS = {
    "ltx": ltx,
    "ltx-091": ltx_091,
    "ltx-condition": ltx_condition,
    "ltx2": _ltx2.ltx2,
    "ltx23": _ltx2.ltx23,
}

#: The same for what is part of a checkpoint and not a pipeline.
PARTS = {"ltx-upsampler": ltx_upsampler, "ltx2-upsampler": _ltx2.ltx2_upsampler}
