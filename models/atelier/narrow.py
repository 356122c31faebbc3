"""Narrows the VAE's latents to their principal components, which a diffusion model learns far sooner.

What the VAE finds is 24 channels of which one direction, how bright a place is, has about four fifths of the variance,
and the form of a thing lies in directions of a hundredth of it. The noise of diffusion is the same in all directions:
until it has almost gone, it hides forms. Turned so that the channels are uncorrelated, and each divided by its own
standard deviation (which pipelines do, by the VAE's config), forms show through as much noise as brightness does; and
the last channels, which hold next to nothing, go. Nothing is trained here: the layers beside the latents take the turn
in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.atelier import states
from models.atelier import vae as vaes
from models.atelier.vae import WIDE, fresh_clips, to_tensor

#: Channels that are left: of 33.2 dB, 31.3 remain. (12: 30.4, 16: 32.1, 18: 32.7.)
CHANNELS = 14

#: The layers beside the latents, whose shapes change.
_BESIDE = ("quant_conv.", "post_quant_conv.", "encoder.conv_out.", "decoder.conv_in.")


def keep(work: Path, narrowed: Any) -> None:
    """Keep a VAE of `CHANNELS` as `work/narrow.pt`: what it has encoded must stay decodable."""
    states.save(narrowed.state_dict(), work / "narrow.pt")


def kept(work: Path, device: Any = "cpu") -> Any:
    """Return the VAE of `work/narrow.pt`; Any: a diffusers.AutoencoderKLWan."""
    made = vaes.make(CHANNELS).to(device)
    made.load_state_dict(states.load(work / "narrow.pt", device))
    return made.eval()


def components(latents: torch.Tensor, count: int) -> torch.Tensor:
    """Return the directions of most variance, largest first: (count, C) of latents (C, N), each of length 1."""
    _variances, directions = torch.linalg.eigh(torch.cov(latents.double()))  # smallest first
    largest: torch.Tensor = directions.flip(1)[:, :count].mT.float()
    return largest


@torch.no_grad()
def narrow(wide: Any, *, channels: int = CHANNELS, seed: int = 0, clips: int = 256) -> Any:
    """Return a VAE of fewer latent channels that codes as the trained one does, but for what the components leave out.

    Args:
        wide: what `vae.train` returns, with `WIDE` latent channels; it is left as it is.
        channels: 1..WIDE.
        clips: how many fresh clips the components are found from.
    """
    means, variances = [], []
    for start in range(0, clips, 8):
        found = [fresh_clips(seed + 10**6 + start + n, 1)[0] for n in range(min(8, clips - start))]
        latents = wide.encode(to_tensor(found).to(wide.device)).latent_dist
        means.append(latents.mean.transpose(0, 1).flatten(1))
        variances.append(latents.var.mean((0, 2, 3, 4)))
    values = torch.cat(means, dim=1)
    turn = components(values, channels)
    lost = values.mean(1) - turn.mT @ (turn @ values.mean(1))  # what the channels that go are on average

    made = vaes.make(channels).to(wide.device)
    state = {name: tensor for name, tensor in wide.state_dict().items() if not name.startswith(_BESIDE)}
    made.load_state_dict(state, strict=False)

    # The encoder: its last layer gives WIDE means and WIDE log-variances, which another layer mixes.
    mixed, bias = _matrix(wide.quant_conv)
    onto, last, seen = turn @ mixed[:WIDE], wide.encoder.conv_out, made.encoder.conv_out
    for parameter in (seen.weight, seen.bias, made.quant_conv.weight, made.quant_conv.bias):
        parameter.zero_()
    seen.weight[:channels] = torch.einsum("oi,i...->o...", onto, last.weight)
    seen.bias[:channels] = onto @ last.bias
    made.quant_conv.weight[:channels, :channels, 0, 0, 0] = torch.eye(channels)
    made.quant_conv.bias[:channels] = turn @ bias[:WIDE]
    # How sure the encoder is becomes one number for each channel: nothing samples it any more.
    made.quant_conv.bias[channels:] = (turn**2 @ torch.stack(variances).mean(0)).log()

    # The decoder: a layer that mixes channels, then a convolution, which sees zeros around them. So what is added to
    # them is added in the first layer as far as it can be, and what lies in none of their directions in the second.
    mixed, bias = _matrix(wide.post_quant_conv)
    first, seen, directions = wide.decoder.conv_in, made.decoder.conv_in, mixed @ turn.mT
    constant = mixed @ lost + bias
    inside = torch.linalg.pinv(directions) @ constant
    made.post_quant_conv.weight.copy_(torch.eye(channels).view(channels, channels, 1, 1, 1))
    made.post_quant_conv.bias.copy_(inside)
    seen.weight.copy_(torch.einsum("oi...,ij->oj...", first.weight, directions))
    seen.bias.copy_(first.bias + first.weight.sum((2, 3, 4)) @ (constant - directions @ inside))
    return made.eval()


def _matrix(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.weight[:, :, 0, 0, 0], layer.bias
