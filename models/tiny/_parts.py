"""What the tiny layouts are made of: tokenizers from committed vocabularies, and weights that look like clouds.

Weights are drawn under fixed seeds, then changed in three ways, with factors that were found by looking at frames:
`amplify` makes the prompt count and gives contrast, `smooth` and `share` make clouds of what would be white noise.
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


def clip_tokenizer() -> Module:
    from transformers import CLIPTokenizer

    bpe = json.loads((VOCABULARIES / "bpe.json").read_text(encoding="utf-8"))
    pieces = {piece: number for number, piece in enumerate(bpe["pieces"])}
    return CLIPTokenizer(vocab=pieces, merges=[tuple(pair) for pair in bpe["merges"]], model_max_length=77)


def t5_tokenizer(max_length: int) -> Module:
    from transformers import T5Tokenizer

    pieces = json.loads((VOCABULARIES / "unigram.json").read_text(encoding="utf-8"))
    return T5Tokenizer(vocab=[tuple(piece) for piece in pieces], extra_ids=0, model_max_length=max_length)


def t5_sizes(vocab_size: int) -> dict[str, Any]:
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


def seeded(seed: int, make: Callable[[], Module]) -> Module:
    """Make a module under a fixed seed, in evaluation mode, leaving torch's own generator as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def amplify(module: Module, factor: float) -> None:
    """Multiply the weights of every layer, and clear the biases: they are the same for every prompt and seed."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor if parameter.dim() > 1 else 0.0)


def clear(parameters: Iterable[Module]) -> None:
    """Set parameters to zero."""
    import torch

    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()


def smooth(decoder: Module, *, causal: bool = False) -> None:
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


def share(convolution: Module, pixels: int) -> None:
    """Give the `pixels` output channels that a later shuffle spreads over neighbouring pixels the same weights."""
    import torch

    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.copy_(parameter[::pixels].repeat_interleave(pixels, dim=0))  # (channels * pixels, …)
