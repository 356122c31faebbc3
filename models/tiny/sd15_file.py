"""The tiny Stable Diffusion 1.x in one file, in the names of the original code: what diffusers' converter reads.

diffusers converts one way only. This is the way back, for UNets and VAEs of any widths and depths.

Source: the names are those of https://github.com/CompVis/stable-diffusion
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models import Pipeline
from models.tiny.animatediff import sd15

Tensors = dict[str, Any]  # Any: torch is imported lazily

#: diffusers' names of the layers of a block, and the original ones.
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file() -> Tensors:
    """The weights of `sd15` in the original names."""
    return {name: tensor.contiguous() for name, tensor in original_names(sd15()).items()}


def original_names(pipeline: Pipeline) -> Tensors:
    """Return the weights of a StableDiffusionPipeline in the original names."""
    parts = {
        "model.diffusion_model.": _unet(pipeline.unet),
        "first_stage_model.": _vae(pipeline.vae),
        "cond_stage_model.transformer.text_model.": pipeline.text_encoder.state_dict(),
    }
    return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}


def _unet(unet: Any) -> Tensors:
    weights = unet.state_dict()
    tensors = _renamed(weights, _UNET_ENDS)
    number = 1  # input block 0 is the first convolution
    for index, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            tensors |= _unet_layer(weights, f"down_blocks.{index}", layer, f"input_blocks.{number}")
            number += 1
        if block.downsamplers:
            old = {f"down_blocks.{index}.downsamplers.0.conv": f"input_blocks.{number}.0.op"}
            tensors |= _renamed(weights, old)
            number += 1
    for layer, original in ((0, 0), (1, 2)):
        tensors |= _layers(weights, f"mid_block.resnets.{layer}", f"middle_block.{original}", _UNET_RESNET)
    tensors |= _renamed(weights, {"mid_block.attentions.0": "middle_block.1"})
    number = 0
    for index, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            tensors |= _unet_layer(weights, f"up_blocks.{index}", layer, f"output_blocks.{number}")
            number += 1
        if block.upsamplers:
            place = 2 if hasattr(block, "attentions") else 1
            old = {f"up_blocks.{index}.upsamplers.0.conv": f"output_blocks.{number - 1}.{place}.conv"}
            tensors |= _renamed(weights, old)
    return tensors


def _unet_layer(weights: Mapping[str, Any], block: str, layer: int, original: str) -> Tensors:
    return _layers(weights, f"{block}.resnets.{layer}", f"{original}.0", _UNET_RESNET) | _renamed(
        weights, {f"{block}.attentions.{layer}": f"{original}.1"}
    )


def _vae(vae: Any) -> Tensors:
    weights = vae.state_dict()
    tensors = _renamed(weights, {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})
    shortcut = {"conv_shortcut": "nin_shortcut", **{name: name for name in ("norm1", "conv1", "norm2", "conv2")}}
    for half, blocks, way, sampler in (
        ("encoder", vae.encoder.down_blocks, "down", "downsample"),
        ("decoder", vae.decoder.up_blocks, "up", "upsample"),
    ):
        ends = {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out"}
        tensors |= _renamed(weights, {**ends, f"{half}.conv_norm_out": f"{half}.norm_out"})
        for index, block in enumerate(blocks):
            # The original code counts the decoder's blocks from the picture's end.
            original = f"{half}.{way}.{index if way == 'down' else len(blocks) - 1 - index}"
            own = f"{half}.{way}_blocks.{index}"
            for layer in range(len(block.resnets)):
                tensors |= _layers(weights, f"{own}.resnets.{layer}", f"{original}.block.{layer}", shortcut)
            tensors |= _renamed(weights, {f"{own}.{sampler}rs.0.conv": f"{original}.{sampler}.conv"})
        for layer in (0, 1):
            own = f"{half}.mid_block.resnets.{layer}"
            tensors |= _layers(weights, own, f"{half}.mid.block_{layer + 1}", shortcut)
        attention = _layers(weights, f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", _VAE_ATTENTION)
        # Linear layers here, 1 x 1 convolutions there.
        tensors |= {
            name: weight[..., None, None] if weight.dim() == 2 else weight for name, weight in attention.items()
        }
    return tensors


def _layers(weights: Mapping[str, Any], own: str, original: str, names: Mapping[str, str]) -> Tensors:
    return _renamed(weights, {f"{own}.{name}": f"{original}.{other}" for name, other in names.items()})


def _renamed(weights: Mapping[str, Any], names: Mapping[str, str]) -> Tensors:
    """Return the weights below each of `names`, renamed; a name without any is one that this model goes without."""
    return {
        other + name.removeprefix(own): tensor
        for own, other in names.items()
        for name, tensor in weights.items()
        if name.startswith(f"{own}.")
    }


#: Files that an entry may refer to ("tiny:NAME") -> function that makes their tensors.
FILES = {"sd15-file": single_file}
