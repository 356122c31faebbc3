"""The tiny checkpoints: real diffusers pipelines, a few hundred thousand random weights each.

Every layout keeps what the real checkpoint is like from outside: classes, compression of the VAE, patch size,
channel layout, scheduler and its settings. So its sizes and frame counts obey the real rules and the production
code loads and runs it. Only widths and depths are tiny. The pictures are abstract, and follow prompt and seed.

Weights are drawn under fixed seeds, then changed in three ways, with factors that were found by looking at frames:
`_amplify` makes the prompt count and gives contrast, `_smooth` and `_share` make clouds of what would be white noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

VOCABULARIES = Path(__file__).parent

#: Any: diffusers and transformers are imported lazily and not typed.
Module = Any
Pipeline = Any

#: Kernel size -> weights along one axis, which add up to 1. A causal convolution's present is its last weight.
_COPY = {1: (1.0,), 3: (0.0, 1.0, 0.0)}
_BLUR = {1: (1.0,), 3: (0.25, 0.5, 0.25)}
_COPY_CAUSAL = {1: (1.0,), 3: (0.0, 0.0, 1.0)}


def ltx() -> Pipeline:
    """LTX-Video: 32x32x8 compression, patch 1; 512x512, 25 frames, 20 steps in 3 s on one CPU thread."""
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
    _amplify(transformer.caption_projection, 1.5)
    _smooth(vae.decoder)
    _clear(parameter for name, parameter in vae.decoder.named_parameters() if "scale_shift_table" in name)
    for block in vae.decoder.up_blocks:
        for upsampler in block.upsamplers or ():
            _share(upsampler.conv, 8)  # 2 x 2 x 2
    _share(vae.decoder.conv_out, 16)  # 4 x 4
    _amplify(vae.decoder.conv_out, 3.0)
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


def wan_ti2v() -> Pipeline:
    """Wan 2.2 TI2V: 16x16x4 compression with 48 channels, one timestep per token; 6 s at 512x512x25 frames."""
    from diffusers import AutoencoderKLWan

    vae = _seeded(
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
    _share(vae.decoder.conv_out, 4)  # 2 x 2
    return _wan(vae, channels=48, flow_shift=5.0, expand_timesteps=True)


def wan21() -> Pipeline:
    """Wan 2.1: 8x8x4 compression with 16 channels; 75 s at 512x512, so for small sizes only."""
    from diffusers import AutoencoderKLWan

    vae = _seeded(
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

    tokenizer = _t5_tokenizer(max_length=512)
    text_encoder = _seeded(1, lambda: UMT5EncoderModel(UMT5Config(**_t5_sizes(len(tokenizer)))))
    transformer = _seeded(
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
    _amplify(transformer.condition_embedder.text_embedder, 8.0)
    _smooth(vae.decoder, causal=True)
    _clear([vae.post_quant_conv.bias])
    _amplify(vae.decoder.conv_in, 3.0)
    _amplify(vae.decoder.conv_out, 2.0)
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


def animatediff() -> Pipeline:
    """AnimateDiff on SD 1.5's layout, with 12 CLIP layers; 512x512, 16 frames, 20 steps in 12 s.

    Lean where SD 1.5 spends its time: one layer per block, one head, and attention over the picture only where it is
    16 x 16 latents (at 512 px); the motion modules are in every block, as in the real ones.
    """
    from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _clip_tokenizer()
    text_encoder = _seeded(
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
    channels = (8, 8, 8, 8)
    unet = _seeded(
        2,
        lambda: UNet2DConditionModel(
            block_out_channels=channels,
            layers_per_block=1,
            sample_size=64,
            cross_attention_dim=16,
            norm_num_groups=2,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        ),
    )
    motion_adapter = _seeded(
        4,
        lambda: _with_effect(
            MotionAdapter(
                block_out_channels=channels,
                motion_layers_per_block=1,
                motion_norm_num_groups=2,
                motion_num_attention_heads=1,
                motion_max_seq_length=32,
            )
        ),
    )
    vae = _seeded(
        3,
        lambda: AutoencoderKL(
            block_out_channels=channels,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            latent_channels=4,
            norm_num_groups=2,
            layers_per_block=1,
        ),
    )
    for name, module in unet.named_modules():
        if name.endswith("attn2.to_out.0"):
            _amplify(module, 20.0)  # the prompt's share; there are two such layers only
    _amplify(unet.conv_out, 3.0)
    _smooth(vae.decoder)
    _amplify(vae.decoder.conv_out, 1.5)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="linspace",
        steps_offset=1,
    )
    return AnimateDiffPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        motion_adapter=motion_adapter,
        scheduler=scheduler,
    )


def _clip_tokenizer() -> Module:
    from transformers import CLIPTokenizer

    bpe = json.loads((VOCABULARIES / "bpe.json").read_text(encoding="utf-8"))
    pieces = {piece: number for number, piece in enumerate(bpe["pieces"])}
    return CLIPTokenizer(vocab=pieces, merges=[tuple(pair) for pair in bpe["merges"]], model_max_length=77)


def _with_effect(motion_adapter: Module) -> Module:
    """Fill the last layers of the motion modules: they start at zero, and the frames would not know each other."""
    import torch

    for name, parameter in motion_adapter.named_parameters():
        if ".proj_out." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return motion_adapter


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


def _amplify(module: Module, factor: float) -> None:
    """Multiply the weights of every layer, and clear the biases: they are the same for every prompt and seed."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor if parameter.dim() > 1 else 0.0)


def _clear(parameters: Iterable[Module]) -> None:
    """Set parameters to zero."""
    import torch

    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()


def _smooth(decoder: Module, *, causal: bool = False) -> None:
    """Turn each convolution of a decoder into a blur that mixes channels at random: clouds instead of white noise.

    White noise would also be what no video codec can compress, so every test and demo would move megabytes.
    """
    import torch

    for name, layer in decoder.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv3d):
            # Before the first upsampling a pixel is 8 to 32 pixels wide: blurred there, nothing would be left.
            blurs = name.startswith(("conv_in", "up_blocks"))
            space = _BLUR if blurs else _COPY
            time = _COPY_CAUSAL if causal else _COPY
            *frames, height, width = layer.kernel_size  # Conv3d has frames, Conv2d has not
            kernel = torch.ones(())
            for weights in (*(time[size] for size in frames), space[height], space[width]):
                kernel = kernel[..., None] * torch.tensor(weights)  # (*kernel_size) in the end
            axes = tuple(range(2, layer.weight.dim()))
            with torch.no_grad():
                layer.weight.copy_(layer.weight.sum(dim=axes, keepdim=True) * kernel)  # (out, in, *kernel_size)
                if layer.bias is not None:
                    layer.bias.zero_()  # the latents alone decide, or all videos would share one colour


def _share(convolution: Module, pixels: int) -> None:
    """Give the `pixels` output channels that a later shuffle spreads over neighbouring pixels the same weights."""
    import torch

    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.copy_(parameter[::pixels].repeat_interleave(pixels, dim=0))  # (channels * pixels, …)
