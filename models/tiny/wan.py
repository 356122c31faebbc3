"""Tiny Wan checkpoints."""

from __future__ import annotations

from models.tiny._parts import Module, Pipeline, amplify, clear, seeded, share, smooth, t5_sizes, t5_tokenizer


def wan_ti2v() -> Pipeline:
    """Wan 2.2 TI2V: 16x16x4 compression with 48 channels, one timestep per token; 6 s at 512x512x25 frames."""
    from diffusers import AutoencoderKLWan

    vae = seeded(
        3,
        lambda: AutoencoderKLWan(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=48,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],  # diffusers' spelling
            is_residual=True,
            in_channels=12,  # 3 colours x patch of 2 x 2
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            scale_factor_temporal=4,
            latents_mean=[0.0] * 48,
            latents_std=[1.0] * 48,
        ),
    )
    share(vae.decoder.conv_out, 4)  # 2 x 2
    return _wan(vae, channels=48, flow_shift=5.0, expand_timesteps=True)


def wan21() -> Pipeline:
    """Wan 2.1: 8x8x4 compression with 16 channels; 75 s at 512x512, so for small sizes only."""
    from diffusers import AutoencoderKLWan

    vae = seeded(
        3,
        lambda: AutoencoderKLWan(
            base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
    )
    return _wan(vae, channels=16, flow_shift=3.0, expand_timesteps=False)


def _wan(vae: Module, *, channels: int, flow_shift: float, expand_timesteps: bool) -> Pipeline:
    """Put the parts that both Wan layouts share around a VAE."""
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = t5_tokenizer(max_length=512)
    text_encoder = seeded(1, lambda: UMT5EncoderModel(UMT5Config(**t5_sizes(len(tokenizer)))))
    transformer = seeded(
        2,
        lambda: WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=channels,
            out_channels=channels,
            text_dim=32,
            freq_dim=64,
            ffn_dim=64,
            num_layers=2,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=1024,
        ),
    )
    # A prompt of ten words is 10 of 512 tokens: as it comes from the encoder it would hardly be seen.
    amplify(transformer.condition_embedder.text_embedder, 8.0)
    smooth(vae.decoder, causal=True)
    clear([vae.post_quant_conv.bias])
    amplify(vae.decoder.conv_in, 3.0)
    amplify(vae.decoder.conv_out, 2.0)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift, num_train_timesteps=1000
    )
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
        expand_timesteps=expand_timesteps,
    )


#: Name in a catalogue entry ("tiny:NAME") -> function that makes the pipeline.
LAYOUTS = {"wan-ti2v": wan_ti2v, "wan21": wan21}
