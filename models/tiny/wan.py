"""Tiny Wan checkpoints."""

from __future__ import annotations

from typing import Any

from models.tiny._parts import Module, Pipeline, amplify, clear, seeded, share, smooth, t5_sizes, t5_tokenizer

#: Width of the tiny CLIP vision encoder; 1280 in the real one.
_IMAGE_DIM = 32


def wan_ti2v() -> Pipeline:
    """Wan 2.2 TI2V: 16x16x4 compression with 48 channels, one timestep per token; 6 s at 512x512x25 frames."""
    from diffusers import AutoencoderKLWan, WanPipeline

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
    return WanPipeline(transformer=_transformer(48, 48), expand_timesteps=True, **_around(vae, flow_shift=5.0))


def wan21() -> Pipeline:
    """Wan 2.1: 8x8x4 compression with 16 channels; 75 s at 512x512, so for small sizes only."""
    from diffusers import WanPipeline

    return WanPipeline(transformer=_transformer(16, 16), **_around(_vae(), flow_shift=3.0))


def wan22_t2v() -> Pipeline:
    """Wan 2.2 T2V A14B: the VAE of 2.1, one transformer for the noisy timesteps and another from 875 down."""
    from diffusers import WanPipeline

    return WanPipeline(
        transformer=_transformer(16, 16),
        transformer_2=_transformer(16, 16, seed=4),
        boundary_ratio=0.875,
        **_around(_vae(), flow_shift=3.0),
    )


def wan21_i2v() -> Pipeline:
    """Wan 2.1 I2V: the picture comes as 4 mask and 16 latent channels beside the noise, and through CLIP."""
    from diffusers import WanImageToVideoPipeline
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pipeline = WanImageToVideoPipeline(
        transformer=_transformer(36, 16, image_dim=_IMAGE_DIM, added_kv_proj_dim=32),
        image_encoder=_image_encoder(),
        image_processor=CLIPImageProcessorPil(),
        **_around(_vae(), flow_shift=3.0),
    )
    # The name in the real model_index.json, which transformers turns into the Pil class where torchvision is missing.
    pipeline.register_to_config(image_processor=("transformers", "CLIPImageProcessor"))
    return pipeline


def wan22_i2v() -> Pipeline:
    """Wan 2.2 I2V A14B: the channels of 2.1 I2V without CLIP, and two transformers that change at timestep 900."""
    from diffusers import WanImageToVideoPipeline

    return WanImageToVideoPipeline(
        transformer=_transformer(36, 16),
        transformer_2=_transformer(36, 16, seed=4),
        boundary_ratio=0.9,
        **_around(_vae(), flow_shift=3.0),
    )


def _vae() -> Module:
    """The VAE of Wan 2.1 and of both A14B models."""
    from diffusers import AutoencoderKLWan

    return seeded(
        3,
        lambda: AutoencoderKLWan(
            base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
    )


def _transformer(in_channels: int, out_channels: int, *, seed: int = 2, **image: Any) -> Module:
    """Make a transformer; `image` are the settings of one that attends to a CLIP picture."""
    from diffusers import WanTransformer3DModel

    transformer = seeded(
        seed,
        lambda: WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=32,
            freq_dim=64,
            ffn_dim=64,
            num_layers=2,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=1024,
            **image,
        ),
    )
    # A prompt of ten words is 10 of 512 tokens: as it comes from the encoder it would hardly be seen.
    amplify(transformer.condition_embedder.text_embedder, 8.0)
    return transformer


def _image_encoder() -> Module:
    """A CLIP vision encoder of the real one's picture size and patches: 224 / 14, so 257 tokens."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=_IMAGE_DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
    )
    return seeded(5, lambda: CLIPVisionModel(config))


def _around(vae: Module, *, flow_shift: float) -> dict[str, Module]:
    """Return the components that all Wan layouts share, and the VAE with a decoder that makes clouds."""
    from diffusers import UniPCMultistepScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    smooth(vae.decoder, causal=True)
    clear([vae.post_quant_conv.bias])
    amplify(vae.decoder.conv_in, 3.0)
    amplify(vae.decoder.conv_out, 2.0)
    tokenizer = t5_tokenizer(max_length=512)
    return {
        "tokenizer": tokenizer,
        "text_encoder": seeded(1, lambda: UMT5EncoderModel(UMT5Config(**t5_sizes(len(tokenizer))))),
        "vae": vae,
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift, num_train_timesteps=1000
        ),
    }


#: Name in a catalogue entry ("tiny:NAME") -> function that makes the pipeline.
LAYOUTS = {
    "wan-ti2v": wan_ti2v,
    "wan21": wan21,
    "wan22-t2v": wan22_t2v,
    "wan21-i2v": wan21_i2v,
    "wan22-i2v": wan22_i2v,
}
