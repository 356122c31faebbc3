"""Trains the demonstration model's transformer and text encoder together, by flow matching on the pool's latents.

On a CPU several processes of one thread each learn faster than one of several threads: each takes a batch, and they
agree on the gradients after every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.spawn import spawn

from models.atelier import states
from models.atelier.denoiser import HALFWAY, Denoiser, encode, new_denoiser, shifted
from models.atelier.narrow import CHANNELS
from models.atelier.optimizers import Optimizers
from models.atelier.pool import KINDS, SHARD, Kind, sample_of, shards
from models.atelier.progress import counted
from models.atelier.vae import SAVE_S
from models.atelier.world import MOTIONS, SHAPES

#: How far the times that are trained lean towards noise, a third of the steps each; see `denoiser.FLOW_SHIFT`. Shape
#: and motion are decided at 0.75 to 0.95: a thing that fills nine tokens of five frames is seen through noise that
#: hides every single latent. With a shift of 3 alone few times lie above 0.9, and things had a colour and no shape.
_SHIFTS = (3.0, 6.0, 12.0)

#: How much tokens' answers weigh, what they are part of and where, see `Denoiser`.
NAMING, PLACING = 0.1, 0.3

#: Seconds between two looks at what it makes.
LOOK_S = 300.0

#: Tokens of one step; a batch has as many clips as fill it.
_TOKENS = 5760


@dataclass(frozen=True)
class Batch:
    """Clips to learn from.

    Args:
        latents: (B, C, T, h, w), normalised.
        thing: (B, T, h, w), which latent positions are not all background.
        captions: for each clip, those of its spans.
        span_of: (B, tokens), or None with one caption each, as `encode` takes it.
        labels: (B, 2), as `Sample.labels`.
        places: (B, 2, T, 5), as `Sample.places`.
    """

    latents: torch.Tensor
    thing: torch.Tensor
    captions: list[list[str]]
    span_of: torch.Tensor | None
    labels: torch.Tensor
    places: torch.Tensor


class Pool:
    """Batches of latents with fresh captions; sees the shards that are there when it draws."""

    def __init__(self, folder: Path, mean: torch.Tensor, std: torch.Tensor) -> None:
        self._folder = folder
        self._mean, self._std = mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
        self._held: dict[Path, dict[str, torch.Tensor]] = {}
        self._seen: dict[str, list[Path]] = {}
        self._looked = -1.0

    def batch(self, rng: np.random.Generator, kind: Kind, count: int) -> Batch:
        """Draw clips with as many spans as the first."""
        if time.monotonic() - self._looked > 60:
            self._seen = {kind.name: shards(self._folder, kind) for kind in KINDS}
            self._looked = time.monotonic()
        paths = self._seen[kind.name]
        latents: list[torch.Tensor] = []
        things: list[torch.Tensor] = []
        captions: list[list[str]] = []
        spans: list[list[int]] = []
        labels: list[tuple[int, int]] = []
        places: list[torch.Tensor] = []
        while len(latents) < count:
            path = paths[rng.integers(len(paths))]
            if path not in self._held:
                self._held[path] = states.load(path)
            index = int(rng.integers(len(self._held[path]["latents"])))
            sample = sample_of(kind, int(path.stem) * SHARD + index)
            words, spans_of_frames = sample.captions(rng)
            if captions and len(words) != len(captions[0]):
                continue
            latents.append(self._held[path]["latents"][index])
            things.append(self._held[path]["thing"][index])
            captions.append(words)
            spans.append(spans_of_frames)
            labels.append(sample.labels)
            places.append(torch.from_numpy(sample.places))
        per_frame = (kind.height // 16) * (kind.width // 16)
        span_of = torch.tensor(spans).repeat_interleave(per_frame, dim=1) if len(captions[0]) > 1 else None
        normal = (torch.stack(latents).float() - self._mean) / self._std
        return Batch(normal, torch.stack(things), captions, span_of, torch.tensor(labels), torch.stack(places))


def statistics(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation of each latent channel, from the first shard of each kind of clip."""
    clips = [kind for kind in KINDS if kind.num_frames > 1]
    latents = [states.load(shards(folder, kind)[0])["latents"].float() for kind in clips]
    values = torch.cat([latent.transpose(0, 1).flatten(1) for latent in latents], dim=1)
    return values.mean(1), values.std(1)


def loss_of(denoiser: Denoiser, pool: Pool, rng: np.random.Generator, kind: Kind) -> torch.Tensor:
    """Draw a batch, add noise, compare the flows, and ask for names."""
    batch = pool.batch(rng, kind, max(2, _TOKENS // kind.tokens))
    latents, captions, count = batch.latents, batch.captions, len(batch.latents)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    captions = [[""] * len(words) if rng.random() < 0.1 else words for words in captions]
    time_ = shifted(torch.sigmoid(torch.randn(count, generator=generator)), _SHIFTS[rng.integers(len(_SHIFTS))])
    noise = torch.randn(latents.shape, generator=generator)
    at = time_.view(-1, 1, 1, 1, 1)
    noisy = (1 - at) * latents + at * noise
    timestep = time_ * 1000
    weight = 1 + 2 * batch.thing[:, None].float()
    # A picture is given now and then: the first latent frame is known.
    if kind.num_frames > 1 and not kind.spans and rng.random() < 0.3:
        noisy[:, :, 0] = latents[:, :, 0]
        per_frame = kind.tokens // kind.latent_frames
        timestep = timestep[:, None].repeat(1, kind.tokens)
        timestep[:, :per_frame] = 0
        weight[:, :, 0] = 0
    device = denoiser.transformer.device
    noisy, timestep, weight, target = (x.to(device) for x in (noisy, timestep, weight, noise - latents))
    with torch.autocast(device.type, torch.bfloat16):
        words = encode(denoiser.tokenizer, denoiser.text_encoder, captions, batch.span_of)
        flow = denoiser(noisy, timestep, words)
        naming = naming_loss(denoiser, batch)
        placing = placing_loss(denoiser, batch)
    error = (flow.float() - target).pow(2)
    loss: torch.Tensor = (error * weight).sum() / (weight.sum() * CHANNELS) + NAMING * naming + PLACING * placing
    return loss


def naming_loss(denoiser: Denoiser, batch: Batch) -> torch.Tensor:
    """Ask the tokens of things for their shapes and motions: as of the denoiser's last call, mean cross-entropies."""
    # A token is 2 x 2 latent positions; it is the thing's where most of them are.
    share = torch.nn.functional.avg_pool3d(batch.thing[:, None].float(), (1, 2, 2)).flatten(1)  # (B, tokens)
    clips, tokens = torch.nonzero(share > 0.5, as_tuple=True)
    device = denoiser.halfway.device
    said = denoiser.names(denoiser.halfway[clips.to(device), tokens.to(device)]).float()
    losses = []
    for logits, label in zip(
        said.split([len(SHAPES), len(MOTIONS)], dim=1), batch.labels[clips].to(device).unbind(1), strict=True
    ):
        losses.append(torch.nn.functional.cross_entropy(logits, label, ignore_index=-1, reduction="sum"))
        losses[-1] = losses[-1] / max(1, int((label >= 0).sum()))
    return losses[0] + losses[1]


def placing_loss(denoiser: Denoiser, batch: Batch) -> torch.Tensor:
    """Ask the tokens of things where the middle is from there, how large it is and how it is turned.

    As of the denoiser's last call; squared errors, in tokens.
    """
    thing, device = batch.thing, denoiser.halfway.device
    clips, frames, rows, columns = torch.nonzero(
        torch.nn.functional.max_pool3d(thing[:, None].float(), (1, 2, 2))[:, 0] > 0, as_tuple=True
    )
    height, width = thing.shape[2] // 2, thing.shape[3] // 2
    token = (frames * height + rows) * width + columns
    told = batch.places[clips, :, frames].clone()  # (n, 2, 5)
    told[..., 0] -= columns[:, None] + 0.5
    told[..., 1] -= rows[:, None] + 0.5
    near = torch.hypot(told[..., 0], told[..., 1]) - told[..., 2]
    told = told[torch.arange(len(told)), near.nan_to_num(torch.inf).argmin(1)]
    said = denoiser.places(denoiser.halfway[clips.to(device), token.to(device)]).float()
    return torch.nn.functional.mse_loss(said, told.to(device))


def train(
    work: Path,
    *,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    processes: int = 1,
    compiled: bool = False,
    say: Callable[[str], None] = print,
    look: Callable[[Denoiser], str] | None = None,
) -> Denoiser:
    """Train, or go on where `work/denoiser.pt` stands; returns the last weights.

    Their average over 500 steps is for looks on the way: at the end the rates have fallen to nothing, and it only lags.

    Args:
        processes: how many learn together, of one thread each; each takes a batch of its own for every step. With more
            than one, `say` and `look` are pickled.
        compiled: compile the transformer's blocks.
        look: called every five minutes with the averaged denoiser; what it returns is said.
    """
    with TemporaryDirectory() as folder:
        learn = partial(_learn, work, Path(folder) / "meeting", processes, steps, seed, device, compiled, say, look)
        if processes == 1:
            learn(0)
        else:
            spawn(learn, nprocs=processes)  # type: ignore[no-untyped-call]
    learnt = new_denoiser(seed).to(device)
    learnt.load_state_dict(states.load(work / "denoiser.pt", device)["denoiser"])
    return learnt


def _learn(
    work: Path,
    meeting: Path,
    processes: int,
    steps: int,
    seed: int,
    device: str,
    compiled: bool,
    say: Callable[[str], None],
    look: Callable[[Denoiser], str] | None,
    rank: int,
) -> None:
    """Be one of the processes that learn; the first one says how far it is, looks, and keeps the state.

    Args:
        meeting: a file that is not there yet, by which they find each other.
    """
    if processes > 1:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=processes)
    pool = Pool(work / "pool", *statistics(work / "pool"))
    denoiser, average = new_denoiser(seed).to(device), new_denoiser(seed).to(device)
    optimizers = Optimizers(denoiser.named_parameters(), steps=steps, muon=0.01, adam=1.5e-3, warm_up=100)
    state_file = work / "denoiser.pt"
    done = 0
    if state_file.exists():
        state = states.load(state_file, device)
        denoiser.load_state_dict(state["denoiser"])
        average.load_state_dict(state["average"])
        if state["optimizers"]:  # not at a start from a checkpoint
            optimizers.load_state_dict(state["optimizers"])
        done = state["done"]
        if rank == 0:
            say(f"denoiser: going on after step {done}")
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # two shapes of timesteps for each kind of clip
        for number, block in enumerate(denoiser.transformer.blocks):
            if number != HALFWAY:  # what is remembered there is no business of a compiler
                block.compile()
    parameters: list[torch.Tensor] = list(denoiser.parameters())
    shares = np.array([kind.share for kind in KINDS])
    began = saved = looked = time.monotonic()
    losses: list[float] = []
    for step in counted("denoiser", steps, done, shown=rank == 0):
        kind = KINDS[np.random.default_rng([seed, 5, step]).choice(len(KINDS), p=shares / shares.sum())]
        loss = loss_of(denoiser, pool, np.random.default_rng([seed, 6, step, rank]), kind)
        loss.backward()  # type: ignore[no-untyped-call]
        if processes > 1:
            _agree(parameters)
        optimizers.step(step)
        losses.append(loss.item())
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
        if rank > 0:  # the others go on to the next step, and wait for this one there
            continue
        if (step + 1) % 50 == 0:
            say(f"denoiser {step + 1}/{steps} {time.monotonic() - began:.0f} s loss {np.mean(losses[-50:]):.4f}")
        if look and (step + 1 == steps or time.monotonic() - looked > LOOK_S):
            say(f"denoiser {step + 1}/{steps} {look(average)}")
            looked = time.monotonic()
        if step + 1 == steps or time.monotonic() - saved > SAVE_S:
            saved = time.monotonic()
            state = {
                "denoiser": denoiser.state_dict(),
                "average": average.state_dict(),
                "optimizers": optimizers.state_dict(),
                "done": step + 1,
            }
            states.save(state, state_file)


def start_from(work: Path, transformer: Any, text_encoder: Any, *, seed: int = 0) -> None:
    """Let the next `train` begin with these weights, a diffusers.WanTransformer3DModel's and its text encoder's.

    What asks tokens, and is in no checkpoint, begins anew from `seed`.
    """
    torch.manual_seed(seed)
    denoiser = Denoiser(transformer, text_encoder)
    state = {"denoiser": denoiser.state_dict(), "average": denoiser.state_dict(), "optimizers": None, "done": 0}
    states.save(state, work / "denoiser.pt")


def _agree(parameters: list[torch.Tensor]) -> None:
    """Give all processes the mean of their gradients."""
    gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    means = torch.split(flat, [value.numel() for value in parameters])
    for value, mean in zip(parameters, means, strict=True):
        value.grad = mean.view_as(value)
