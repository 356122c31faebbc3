"""Tiny LTX checkpoints."""

from __future__ import annotations

from models.tiny._parts import Pipeline, amplify, clear, seeded, share, smooth, t5_sizes, t5_tokenizer


def ltx() -> Pipeline:
    """LTX-Video: 32x32x8 compression, patch 1; 512x512, 25 frames, 20 steps in 3 s on one CPU thread."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    tokenizer = t5_tokenizer(max_length=128)
    text_encoder = seeded(1, lambda: T5EncoderModel(T5Config(**t5_sizes(len(tokenizer)))))
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
    vae = seeded(
        3,
        lambda: AutoencoderKLLTXVideo(
            latent_channels=16,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, True, False),
            decoder_spatio_temporal_scaling=(True, True, True, False),
            timestep_conditioning=True,
            patch_size=4,
            patch_size_t=1,
        ),
    )
    amplify(transformer.caption_projection, 1.5)
    smooth(vae.decoder)
    clear(parameter for name, parameter in vae.decoder.named_parameters() if "scale_shift_table" in name)
    for block in vae.decoder.up_blocks:
        for upsampler in block.upsamplers or ():
            share(upsampler.conv, 8)  # 2 x 2 x 2
    share(vae.decoder.conv_out, 16)  # 4 x 4
    amplify(vae.decoder.conv_out, 3.0)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    return LTXPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae, scheduler=scheduler
    )


#: Name in a catalogue entry ("tiny:NAME") -> function that makes the pipeline.
LAYOUTS = {"ltx": ltx}
