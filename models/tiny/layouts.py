"""The tiny checkpoints: real diffusers pipelines, a few hundred thousand random weights each.

Every layout keeps what the real checkpoint is like from outside: classes, compression of the VAE, patch size,
channel layout, scheduler and its settings. So its sizes and frame counts obey the real rules and the production
code loads and runs it. Only widths and depths are tiny. The pictures are abstract, and follow prompt and seed.

Weights are drawn under fixed seeds. Two things make the pictures more than grey: `_amplify` on the denoiser's last
layer (prompt and noise have an effect) and on the decoder's last layer (contrast); the factors were found by looking.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARIES = Path(__file__).parent

#: Any: diffusers and transformers are imported lazily and not typed.
Module = Any
Pipeline = Any


def ltx() -> Pipeline:
    """LTX-Video: 32x32x8 compression, patch 1; 512x512, 25 frames, 20 steps in about 3 s on one CPU thread."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    tokenizer = _t5_tokenizer(max_length=128)
    text_encoder = _seeded(1, lambda: T5EncoderModel(T5Config(**_t5_sizes(len(tokenizer)))))
    transformer = _seeded(
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
    vae = _seeded(
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
    _amplify(transformer.proj_out, 1.0)
    _amplify(vae.decoder.conv_out, 1.0)
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


def _t5_tokenizer(max_length: int) -> Module:
    from transformers import T5Tokenizer

    pieces = json.loads((VOCABULARIES / "unigram.json").read_text(encoding="utf-8"))
    return T5Tokenizer(vocab=[tuple(piece) for piece in pieces], extra_ids=0, model_max_length=max_length)


def _t5_sizes(vocab_size: int) -> dict[str, Any]:
    """The configuration that T5 (LTX) and UMT5 (Wan) share."""
    return {
        "vocab_size": vocab_size,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _seeded(seed: int, make: Callable[[], Module]) -> Module:
    """Make a module under a fixed seed, in evaluation mode, leaving torch's own generator as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def _amplify(layer: Module, factor: float) -> None:
    """Multiply a layer's weights and biases."""
    import torch

    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(factor)
