"""Tiny LTX-2 checkpoints: pictures and sound from one transformer."""

from __future__ import annotations

import json
from typing import Any

from models.tiny._parts import VOCABULARIES, Module, Pipeline, amplify, seeded, share, smooth

#: Width of the tiny Gemma; 3840 in the real one.
_TEXT_DIM = 32
_TEXT_LAYERS = 2
_MEL_BINS = 16

#: What LTX-2.3 has and LTX-2.0 has not: gates on attention, modulation of the prompt by the timestep, attention that
#: guidance can perturb, and a projection of the prompt for each modality.
_TRANSFORMER_23 = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
_CONNECTORS_23 = {
    "video_gated_attn": True,
    "audio_gated_attn": True,
    "per_modality_projections": True,
    "video_hidden_dim": 32,
    "audio_hidden_dim": 16,
    "proj_bias": True,
}


def ltx2() -> Pipeline:
    """LTX-2.0: 32x32x8 compression, stereo at 24 kHz."""
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    vocoder = seeded(
        6,
        lambda: LTX2Vocoder(
            in_channels=2 * _MEL_BINS,
            hidden_channels=32,
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        ),
    )
    return _pipeline(vocoder, _vae(contrast=5.0), {}, {"audio_connector_num_attention_heads": 4})


def ltx23() -> Pipeline:
    """LTX-2.3: the same geometry, stereo at 48 kHz through a second vocoder that widens the band."""
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

    vocoder = seeded(
        6,
        lambda: LTX2VocoderWithBWE(
            in_channels=2 * _MEL_BINS,
            hidden_channels=64,
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
            bwe_in_channels=2 * _MEL_BINS,
            bwe_hidden_channels=32,
            bwe_resnet_kernel_sizes=[3],
            bwe_resnet_dilations=[[1, 3, 5]],
            num_mel_channels=_MEL_BINS,
            filter_length=160,  # 512 in the real one, which would be 2 MB of sines
            window_length=160,
        ),
    )
    connectors = {"audio_connector_num_attention_heads": 2, **_CONNECTORS_23}
    return _pipeline(vocoder, _vae(contrast=2.5), _TRANSFORMER_23, connectors)


def ltx2_upsampler() -> Module:
    """Twice the height and width of LTX-2's latents, as the folder latent_upsampler of Lightricks/LTX-2."""
    from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

    return seeded(
        7,
        lambda: LTX2LatentUpsamplerModel(
            in_channels=16, mid_channels=32, num_blocks_per_stage=1, use_rational_resampler=False
        ),
    )


def _pipeline(vocoder: Module, vae: Module, transformer: dict[str, Any], connectors: dict[str, Any]) -> Pipeline:
    """Return a pipeline with these settings (Any) of transformer and connectors."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline, LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    tokenizer = _gemma_tokenizer()
    denoiser = seeded(
        2,
        lambda: LTX2VideoTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            audio_in_channels=8,
            audio_out_channels=8,
            audio_num_attention_heads=2,
            audio_attention_head_dim=8,
            audio_cross_attention_dim=16,
            num_layers=2,
            caption_channels=_TEXT_DIM,
            rope_type="split",
            rope_double_precision=False,
            **transformer,
        ),
    )
    for block in denoiser.transformer_blocks:
        amplify(block.attn2.to_v, 6.0)
    connector = seeded(
        5,
        lambda: LTX2TextConnectors(
            caption_channels=_TEXT_DIM,
            text_proj_in_factor=_TEXT_LAYERS + 1,
            video_connector_num_attention_heads=4,
            video_connector_attention_head_dim=8,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=None,
            audio_connector_attention_head_dim=8,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None,
            connector_rope_base_seq_len=32,
            rope_double_precision=False,
            rope_type="split",
            **connectors,
        ),
    )
    return LTX2Pipeline(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(len(tokenizer)),
        connectors=connector,
        transformer=denoiser,
        vae=vae,
        audio_vae=_audio_vae(),
        vocoder=vocoder,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
    )


def _gemma_tokenizer() -> Module:
    """Return a tokenizer with the pieces of the CLIP one, but that Gemma writes a space as "▁" and marks no ends."""
    from transformers import GemmaTokenizer

    bpe = json.loads((VOCABULARIES / "bpe.json").read_text(encoding="utf-8"))
    merges = list(dict.fromkeys((left, right.removesuffix("</w>")) for left, right in bpe["merges"]))
    pieces = [
        *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *("▁", *map(chr, range(33, 127))),
        *(left + right for left, right in merges),
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return GemmaTokenizer(vocab=vocabulary, merges=merges, model_max_length=1024)


def _text_encoder(vocabulary_size: int) -> Module:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": _TEXT_DIM,
        "intermediate_size": 64,
        "num_hidden_layers": _TEXT_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 64,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return seeded(1, lambda: Gemma3ForConditionalGeneration(config))


def _vae(*, contrast: float) -> Module:
    from diffusers import AutoencoderKLLTX2Video

    vae = seeded(
        3,
        lambda: AutoencoderKLLTX2Video(
            latent_channels=16,
            block_out_channels=(4, 8, 16, 32),
            decoder_block_out_channels=(8, 16, 32),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            upsample_residual=(False, False, False),
            # Both must be given: it works out 64 and 16 by itself.
            spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        ),
    )
    smooth(vae.decoder, causal=True)
    for block in vae.decoder.up_blocks:
        for upsampler in block.upsamplers or ():
            share(upsampler.conv, 8)  # 2 x 2 x 2
    share(vae.decoder.conv_out, 16)  # 4 x 4
    amplify(vae.decoder.conv_out, contrast)
    return vae


def _audio_vae() -> Module:
    from diffusers import AutoencoderKLLTX2Audio

    latent_channels = 2
    return seeded(
        4,
        lambda: AutoencoderKLLTX2Audio(
            base_channels=latent_channels * _MEL_BINS // 4,  # or its statistics would not fit its latents
            output_channels=2,
            ch_mult=(1, 1, 1),
            num_res_blocks=1,
            in_channels=2,
            resolution=32,
            latent_channels=latent_channels,
            mel_bins=_MEL_BINS,
        ),
    )
