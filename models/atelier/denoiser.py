"""Trains the demonstration model's transformer and text encoder together, by flow matching on the pool's latents.

diffusers fills a prompt's embeddings with zeros up to 512 tokens, and Wan's cross-attention looks at all of them. Here
they are one token that counts as often as it would stand there, which is the same to the last bit of arithmetic and
costs nothing (`Words`). So the model may be called with the pipeline's own defaults.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.atelier.narrow import CHANNELS
from models.atelier.optimizers import Optimizers
from models.atelier.pool import KINDS, SHARD, Kind, sample_of, shards
from models.atelier.vae import SAVE_S
from models.atelier.words import TEXT_DIM, make_text_encoder, make_tokenizer

#: To how many tokens the pipeline fills a prompt.
MAX_SEQUENCE_LENGTH = 512

#: Tokens of a caption in training: the longest has this many, and one length spares compiling for others.
WORDS = 34

#: Of the scheduler: how far the steps of a generation lean towards noise.
FLOW_SHIFT = 8.0

#: The same of the times that are trained, a third of the steps each. A thing that fills nine tokens of five frames is
#: seen through noise that hides every single latent: where it will be shows at 0.99 already. With a shift of 3 alone, 1
#: of 100 times lies above 0.97, and things had the right colour and no shape.
_SHIFTS = (3.0, 8.0, 25.0)

#: Tokens of one step; a batch has as many clips as fill it.
_TOKENS = 5760

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


@dataclass
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
    """The transformer and the text encoder as they are trained."""

    def __init__(self, transformer: Any, text_encoder: Any) -> None:
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder
        self.tokenizer = make_tokenizer()
        self.attention = TrainingAttention()

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
    torch.manual_seed(seed)
    denoiser = Denoiser(make(), make_text_encoder())
    for name, parameter in denoiser.text_encoder.named_parameters():
        if parameter.ndim == 2 and "relative_attention_bias" not in name:
            torch.nn.init.normal_(parameter, std=1.0 if "shared" in name or "embed" in name else 0.06)
    return denoiser


class Pool:
    """Batches of latents with fresh captions; sees the shards that are there when it draws."""

    def __init__(self, folder: Path, mean: torch.Tensor, std: torch.Tensor) -> None:
        self._folder = folder
        self._mean, self._std = mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
        self._held: dict[Path, dict[str, torch.Tensor]] = {}
        self._seen: dict[str, list[Path]] = {}
        self._looked = -1.0

    def batch(
        self, rng: np.random.Generator, kind: Kind, count: int
    ) -> tuple[torch.Tensor, torch.Tensor, list[list[str]], torch.Tensor | None]:
        """Draw (latents, thing, captions, span of each token); clips with as many spans as the first."""
        if time.monotonic() - self._looked > 60:
            self._seen = {kind.name: shards(self._folder, kind) for kind in KINDS}
            self._looked = time.monotonic()
        paths = self._seen[kind.name]
        latents: list[torch.Tensor] = []
        things: list[torch.Tensor] = []
        captions: list[list[str]] = []
        spans: list[list[int]] = []
        while len(latents) < count:
            path = paths[rng.integers(len(paths))]
            if path not in self._held:
                self._held[path] = torch.load(path, weights_only=True)
            index = int(rng.integers(len(self._held[path]["latents"])))
            words, spans_of_frames = sample_of(kind, int(path.stem) * SHARD + index).captions(rng)
            if captions and len(words) != len(captions[0]):
                continue
            latents.append(self._held[path]["latents"][index])
            things.append(self._held[path]["thing"][index])
            captions.append(words)
            spans.append(spans_of_frames)
        per_frame = (kind.height // 16) * (kind.width // 16)
        span_of = torch.tensor(spans).repeat_interleave(per_frame, dim=1) if len(captions[0]) > 1 else None
        normal = (torch.stack(latents).float() - self._mean) / self._std
        return normal, torch.stack(things), captions, span_of


def statistics(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation of each latent channel, from the first shard of each kind of clip."""
    clips = [kind for kind in KINDS if kind.num_frames > 1]
    latents = [torch.load(shards(folder, kind)[0], weights_only=True)["latents"].float() for kind in clips]
    values = torch.cat([latent.transpose(0, 1).flatten(1) for latent in latents], dim=1)
    return values.mean(1), values.std(1)


def shifted(times: torch.Tensor, shift: float) -> torch.Tensor:
    """Return times, 0..1, leant towards 1, which is noise."""
    return shift * times / (1 + (shift - 1) * times)


def loss_of(denoiser: Denoiser, pool: Pool, rng: np.random.Generator, kind: Kind) -> torch.Tensor:
    """Draw a batch, add noise, and compare the flows."""
    latents, thing, captions, span_of = pool.batch(rng, kind, max(2, _TOKENS // kind.tokens))
    count = len(latents)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    captions = [[""] * len(words) if rng.random() < 0.1 else words for words in captions]
    time_ = shifted(torch.sigmoid(torch.randn(count, generator=generator)), _SHIFTS[rng.integers(len(_SHIFTS))])
    noise = torch.randn(latents.shape, generator=generator)
    at = time_.view(-1, 1, 1, 1, 1)
    noisy = (1 - at) * latents + at * noise
    timestep = time_ * 1000
    weight = 1 + 2 * thing[:, None].float()
    if (
        kind.num_frames > 1 and not kind.spans and rng.random() < 0.3
    ):  # a picture is given: the first latent frame is known
        noisy[:, :, 0] = latents[:, :, 0]
        per_frame = kind.tokens // kind.latent_frames
        timestep = timestep[:, None].repeat(1, kind.tokens)
        timestep[:, :per_frame] = 0
        weight = weight.clone()
        weight[:, :, 0] = 0
    device = denoiser.transformer.device
    noisy, timestep, weight, target = (x.to(device) for x in (noisy, timestep, weight, noise - latents))
    with torch.autocast(device.type, torch.bfloat16):
        words = encode(denoiser.tokenizer, denoiser.text_encoder, captions, span_of)
        flow = denoiser(noisy, timestep, words)
    error = (flow.float() - target).pow(2)
    loss: torch.Tensor = (error * weight).sum() / (weight.sum() * CHANNELS)
    return loss


def train(
    work: Path,
    *,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = print,
    compiled: bool = False,
    test: Callable[[Denoiser], str] | None = None,
) -> Denoiser:
    """Train, or go on where `work/denoiser.pt` stands; returns the averaged weights.

    Args:
        compiled: compile the transformer's blocks.
        test: called every ten minutes with the averaged denoiser; what it returns is said.
    """
    state_file = work / "denoiser.pt"
    pool = Pool(work / "pool", *statistics(work / "pool"))
    denoiser, average = new_denoiser(seed).to(device), new_denoiser(seed).to(device)
    optimizers = Optimizers(denoiser.named_parameters(), steps=steps, muon=0.01, adam=1.5e-3, warm_up=100)
    done = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        denoiser.load_state_dict(state["denoiser"])
        average.load_state_dict(state["average"])
        optimizers.load_state_dict(state["optimizers"])
        done = state["done"]
        say(f"denoiser: going on after step {done}")
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # two shapes of timesteps for each kind of clip
        for block in denoiser.transformer.blocks:
            block.compile()
    shares = np.array([kind.share for kind in KINDS])
    began = saved = tested = time.monotonic()
    losses: list[float] = []
    for step in range(done, steps):
        rng = np.random.default_rng([seed, 5, step])
        kind = KINDS[rng.choice(len(KINDS), p=shares / shares.sum())]
        loss = loss_of(denoiser, pool, rng, kind)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(step)
        losses.append(loss.item())
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(denoiser.parameters()), 1 - decay)
        if (step + 1) % 50 == 0:
            say(f"denoiser {step + 1}/{steps} {time.monotonic() - began:.0f} s loss {np.mean(losses[-50:]):.4f}")
        if test and (step + 1 == steps or time.monotonic() - tested > 600):
            say(f"denoiser {step + 1}/{steps} {test(average)}")
            tested = time.monotonic()
        if step + 1 == steps or time.monotonic() - saved > SAVE_S:
            saved = time.monotonic()
            state = {
                "denoiser": denoiser.state_dict(),
                "average": average.state_dict(),
                "optimizers": optimizers.state_dict(),
                "done": step + 1,
            }
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").rename(state_file)
    return average


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    captions: Sequence[Sequence[str]],
    kind: Kind,
    *,
    seed: int = 0,
    steps: int = 20,
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
    times = shifted(torch.linspace(1, 0, steps + 1), FLOW_SHIFT)
    for now, then in pairwise(times):
        timestep = now.to(device).expand(len(captions)) * 1000
        with torch.autocast(device.type, torch.bfloat16):
            flow = denoiser(latents, timestep, words).float()
            base = denoiser(latents, timestep, nothing).float()
        latents = latents + float(then - now) * (base + guidance_scale * (flow - base))
    return latents
