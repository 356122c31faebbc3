"""The demonstration model's transformer and text encoder, as they are trained.

diffusers fills a prompt's embeddings with zeros up to 512 tokens, and Wan's cross-attention looks at all of them. Here
they are one token that counts as often as it would stand there, which is the same to the last bit of arithmetic and
costs nothing (`Words`). So the model may be called with the pipeline's own defaults.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from models.atelier.narrow import CHANNELS
from models.atelier.pool import Kind
from models.atelier.words import TEXT_DIM, make_text_encoder, make_tokenizer
from models.atelier.world import MOTIONS, SHAPES

#: To how many tokens the pipeline fills a prompt.
MAX_SEQUENCE_LENGTH = 512

#: Tokens of a caption in training: the longest has this many, and one length spares compiling for others.
WORDS = 37

#: Of the scheduler: how far the steps of a generation lean towards noise.
FLOW_SHIFT = 5.0

#: After which block tokens are asked for names and places.
HALFWAY = 2

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT_DIM,
    "freq_dim": 128,
    "ffn_dim": 768,
    "num_layers": 6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
}


def make() -> Any:
    """Make the transformer, untrained; Any: a diffusers.WanTransformer3DModel."""
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel(**CONFIG)
    with torch.no_grad():
        transformer.proj_out.weight.zero_()
        transformer.proj_out.bias.zero_()
    return transformer


@dataclass(frozen=True)
class Words:
    """What cross-attention sees: (B, L, TEXT_DIM), and the logarithm of how often each counts for a token.

    `weight` is (B, tokens or 1, L): 0 for what stands there once, -inf for what is not there or is not of this span.
    """

    embeds: torch.Tensor
    weight: torch.Tensor


def encode(tokenizer: Any, text_encoder: Any, captions: Sequence[Sequence[str]], span_of: torch.Tensor | None) -> Words:
    """Encode the captions of clips.

    Args:
        captions: for each clip, the captions of its spans; the same number for all.
        span_of: (B, tokens), which caption a token attends to; None when each clip has one.
    """
    num_spans = len(captions[0])
    flat = [caption for spans in captions for caption in spans]
    tokens = tokenizer(
        flat, padding="max_length", max_length=WORDS, truncation=True, return_tensors="pt", return_attention_mask=True
    ).to(text_encoder.device)
    mask = tokens.attention_mask
    embeds = text_encoder(tokens.input_ids, mask).last_hidden_state * mask[..., None]
    embeds = torch.cat([embeds, torch.zeros_like(embeds[:, :1])], dim=1)  # the token that all fillings are
    lengths = mask.sum(1, keepdim=True)
    weight = torch.where(mask > 0, 0.0, -math.inf)
    weight = torch.cat([weight, (MAX_SEQUENCE_LENGTH - lengths).float().log()], dim=1)  # (B * spans, L)
    length = weight.shape[1]
    embeds = embeds.reshape(len(captions), num_spans * length, -1)
    weight = weight.reshape(len(captions), 1, num_spans * length)
    if span_of is None:
        return Words(embeds, weight)
    spans = torch.arange(num_spans, device=weight.device).repeat_interleave(length)  # (spans * L)
    return Words(embeds, torch.where(span_of.to(weight.device)[..., None] == spans, weight, -math.inf))


class TrainingAttention:
    """Wan's attention with weighted text tokens, and a rotation that is quicker to differentiate."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        self.weight: torch.Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(source))
        query, key, value = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (query, key, attn.to_v(source)))
        mask = None
        if rotary_emb is not None:
            query, key = rotate(query, rotary_emb), rotate(key, rotary_emb)
        elif self.weight is not None:
            mask = self.weight[:, None].to(query.dtype)
        # By hand: torch's fused attention takes half of a step's time on a CPU, nearly all of it backwards.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        attended = (scores if mask is None else scores + mask).softmax(-1).to(value.dtype) @ value
        out: torch.Tensor = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
        return out


def rotate(x: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn pairs of channels by their position; x is (B, heads, tokens, channels)."""
    cos, sin = (table[0, :, 0].to(x.dtype) for table in rotary_emb)  # (tokens, channels), each value twice
    first, second = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return x * cos + torch.stack((-second, first), dim=-1).flatten(-2) * sin


class Denoiser(torch.nn.Module):
    """The transformer and the text encoder as they are trained.

    Colours show in the loss at once, but of what a thing's shape and motion change in it little is left where they are
    decided, at times of 0.75 to 0.95, where noise hides all but a blur. So the tokens of a thing are asked what it is
    (`names`) and where its middle and its border are from there (`places`), halfway through the blocks: the words for
    it get there early, and tokens agree on one thing. Nothing of this is in the checkpoint.
    """

    def __init__(self, transformer: Any, text_encoder: Any) -> None:
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder
        self.tokenizer = make_tokenizer()
        self.attention = TrainingAttention()
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.names = torch.nn.Linear(width, len(SHAPES) + len(MOTIONS))
        self.places = torch.nn.Linear(width, 5)
        self.halfway = torch.empty(0)  # (B, tokens, width), of the last call
        transformer.blocks[HALFWAY].register_forward_hook(self._remember)

    def _remember(self, block: Any, arguments: Any, hidden_states: torch.Tensor) -> None:
        self.halfway = hidden_states

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, words: Words) -> torch.Tensor:
        """Return the flow, noise minus latents, in the latents' shape.

        Args:
            timestep: 0..1000, (B,) or one per token (B, tokens).
        """
        for block in self.transformer.blocks:
            block.attn1.processor = block.attn2.processor = self.attention
        self.attention.weight = words.weight
        flow: torch.Tensor = self.transformer(latents, timestep, words.embeds, return_dict=False)[0]
        return flow


def new_denoiser(seed: int) -> Denoiser:
    """Make the denoiser, untrained: transformer, text encoder and what asks tokens."""
    torch.manual_seed(seed)
    denoiser = Denoiser(make(), make_text_encoder())
    for name, parameter in denoiser.text_encoder.named_parameters():
        if parameter.ndim == 2 and "relative_attention_bias" not in name:
            torch.nn.init.normal_(parameter, std=1.0 if "shared" in name or "embed" in name else 0.06)
    return denoiser


def shifted(times: torch.Tensor, shift: float) -> torch.Tensor:
    """Return times, 0..1, leant towards 1, which is noise."""
    return shift * times / (1 + (shift - 1) * times)


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    captions: Sequence[Sequence[str]],
    kind: Kind,
    *,
    seed: int = 0,
    num_inference_steps: int = 20,
    guidance_scale: float = 4.0,
) -> torch.Tensor:
    """Make latents of captions, normalised, by Euler's method: for a look while training is under way."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(captions), CHANNELS, kind.latent_frames, kind.height // 8, kind.width // 8)
    device = denoiser.transformer.device
    latents = torch.randn(shape, generator=generator).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        words = encode(denoiser.tokenizer, denoiser.text_encoder, captions, None)
        nothing = encode(denoiser.tokenizer, denoiser.text_encoder, [[""]] * len(captions), None)
    times = shifted(torch.linspace(1, 0, num_inference_steps + 1), FLOW_SHIFT)
    for now, then in pairwise(times):
        timestep = now.to(device).expand(len(captions)) * 1000
        with torch.autocast(device.type, torch.bfloat16):
            flow = denoiser(latents, timestep, words).float()
            base = denoiser(latents, timestep, nothing).float()
        latents = latents + float(then - now) * (base + guidance_scale * (flow - base))
    return latents
