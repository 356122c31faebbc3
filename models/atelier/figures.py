"""Measures what the demonstration model does against what it was told, with the world's own judge.

Everything runs through the pipelines that serve it, from a checkpoint folder. `python -m models.atelier figures` prints
the table of the model card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.atelier import captions
from models.atelier.judge import Seen, as_floats, background_of, cover_of, judge
from models.atelier.vae import fresh_clips, psnr, to_tensor
from models.atelier.world import COLOURS, Scene, Thing, plan, random_scene
from polyreel.request import OutputSpec, PromptSpan, VideoRequest

#: How the figures are made, and how the model is meant to be used.
STEPS, GUIDANCE = 20, 5.0
NUM_FRAMES, HEIGHT, WIDTH = 17, 96, 96

#: Clips per call of the pipeline.
_BATCH = 16

#: What a clip is judged by.
WORDS = ("colour", "background", "shape", "motion")

#: First seed of each figure: none is in training, and no two figures share their scenes.
_SEEDS = {"trained": 10_000_000, "held_out": 11_000_000, "negative": 12_000_000, "i2v": 13_000_000, "vae": 14_000_000}


@dataclass(frozen=True)
class Score:
    """How many of the clips were right, word by word and in all words at once; shares, 0..1."""

    colour: float
    background: float
    shape: float
    motion: float
    joint: float


def scenes(name: str, count: int) -> list[Scene]:
    """Return the scenes of a figure: one thing each, drawn from its own seeds."""
    return [
        random_scene(np.random.default_rng([_SEEDS[name], index]), held_out=name == "held_out")
        for index in range(count)
    ]


def load(folder: Path) -> Any:
    """Load the checkpoint as it is served, in float32; Any: a diffusers.WanPipeline."""
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    negative_prompt: Sequence[str] | None = None,
    first_seed: int = 0,
    num_inference_steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
) -> list[np.ndarray]:
    """Make a clip of each prompt, (F, H, W, 3), floats 0..1; the n-th from seed first_seed + n."""
    clips: list[np.ndarray] = []
    for start in range(0, len(prompts), _BATCH):
        part = list(prompts[start : start + _BATCH])
        numbers = range(first_seed + start, first_seed + start + len(part))
        clips += list(
            pipeline(
                prompt=part,
                negative_prompt=list(negative_prompt[start : start + _BATCH]) if negative_prompt else [""] * len(part),
                num_frames=NUM_FRAMES,
                height=HEIGHT,
                width=WIDTH,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=[torch.Generator().manual_seed(number) for number in numbers],
                output_type="np",
            ).frames
        )
    return clips


def right(scene: Scene, seen: Seen) -> dict[str, bool]:
    """Return which words of a scene of one thing a clip shows."""
    [thing] = scene.things
    return {word: getattr(seen, word) == getattr(thing, word, scene.background) for word in WORDS}


def score(told: Sequence[Scene], clips: Sequence[np.ndarray]) -> Score:
    """Return how often clips show what they were told, by the world's own judge."""
    marks = [right(scene, judge(clip)) for scene, clip in zip(told, clips, strict=True)]
    shares = {word: float(np.mean([mark[word] for mark in marks])) for word in WORDS}
    return Score(**shares, joint=float(np.mean([all(mark.values()) for mark in marks])))


def prompts_of(told: Sequence[Scene]) -> list[str]:
    """Say scenes in the documentation's words."""
    return [captions.sentence(scene) for scene in told]


def follows(pipeline: Any, name: str, count: int = 64, **call: Any) -> Score:
    """Judge clips of scenes that were trained ("trained") or kept from training ("held_out")."""
    told = scenes(name, count)
    return score(told, make(pipeline, prompts_of(told), **call))


def removes(pipeline: Any, count: int = 64) -> float:
    """Return in how many clips a colour goes when the negative prompt names it.

    The prompt leaves the colour open; what a seed shows without a negative prompt is then named in it.
    """
    told = scenes("negative", count)
    open_ = [captions.sentence(scene).replace(f"{scene.things[0].colour} ", "") for scene in told]
    shown = [judge(clip).colour for clip in make(pipeline, open_)]
    seen = [judge(clip).colour for clip in make(pipeline, open_, negative_prompt=shown)]
    return float(np.mean([now != before for now, before in zip(seen, shown, strict=True)]))


@dataclass(frozen=True)
class Continues:
    """How well pictures are kept, in dB, and how many clips move as told, 0..1."""

    psnr: float
    motion: float


def continues(pipeline: Any, count: int = 64) -> Continues:
    """Give the first frames of the world's own clips, and judge what becomes of them."""
    from diffusers import WanImageToVideoPipeline
    from PIL import Image

    moving = WanImageToVideoPipeline.from_pipe(pipeline)
    moving.set_progress_bar_config(disable=True)
    kept, moved = [], []
    for index, scene in enumerate(scenes("i2v", count)):
        clip = plan(scene, np.random.default_rng([_SEEDS["i2v"], 1, index])).draw()
        picture = np.rint(clip[0] * 255).astype(np.uint8)
        [made] = moving(
            image=Image.fromarray(picture),
            prompt=captions.sentence(scene),
            negative_prompt="",
            num_frames=NUM_FRAMES,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(index),
            output_type="np",
        ).frames
        kept.append(float(-10 * np.log10(np.mean((made[0] - picture / 255) ** 2))))
        moved.append(judge(made).motion == scene.things[0].motion)
    return Continues(float(np.mean(kept)), float(np.mean(moved)))


@torch.no_grad()
def reconstructs(pipeline: Any, count: int = 64) -> float:
    """Return the VAE's mean PSNR on fresh clips, in dB."""
    values = []
    for clip in fresh_clips(_SEEDS["vae"], count):
        real = to_tensor([clip])
        made = pipeline.vae.decode(pipeline.vae.encode(real).latent_dist.mode()).sample
        values.append(psnr(made, real))
    return float(torch.cat(values).mean())


def hollowness(frames: np.ndarray) -> float:
    """Return how much of a thing's inside is background: 0 for a filled shape, towards 1 for an outline."""
    frames = as_floats(frames)
    cover, _colour = cover_of(frames, background_of(frames))
    values = []
    for frame in cover:
        solid = frame > 0.5
        if not solid.any():
            continue
        # Inside is what has the thing on its left and right and above and below it.
        inside = (
            np.maximum.accumulate(solid, 1)
            & np.maximum.accumulate(solid[:, ::-1], 1)[:, ::-1]
            & np.maximum.accumulate(solid, 0)
            & np.maximum.accumulate(solid[::-1], 0)[::-1]
        )
        values.append(1 - float(frame[inside].mean()))
    return float(np.mean(values)) if values else 0.0


def glow(frames: np.ndarray) -> float:
    """Return how much of a thing's colour lies around it: about 0 for a clear border, towards 1 for a halo."""
    frames = as_floats(frames)
    background = background_of(frames)
    cover, colour = cover_of(frames, background)
    axis = colour - background
    values = []
    for frame, solid in zip(frames, cover > 0.9, strict=True):
        radius = np.sqrt(solid.sum() / np.pi)
        near = _grown(solid, max(2, round(0.45 * radius))) & ~_grown(solid, 2)
        if near.any():
            share = ((frame - background) @ axis / max(1e-9, float(axis @ axis)))[near]
            values.append(float(np.clip(share, 0, 1).mean()))
    return float(np.mean(values)) if values else 0.0


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return a mask with `pixels` more around it."""
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


#: Style -> what it changes.
MEASURES: dict[str, Callable[[np.ndarray], float]] = {"outline": hollowness, "neon": glow}

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def large_scenes(count: int) -> list[Scene]:
    """Return the scenes that styles are measured on: large things, at which a style is seen best."""
    return [Scene((replace(scene.things[0], size="large"),), scene.background) for scene in scenes("trained", count)]


def drawn(measure: Callable[[np.ndarray], float], style: str, count: int = 16) -> float:
    """Return what a measure is, mean over clips, where the world itself draws those scenes in a style."""
    clips = [plan(scene, np.random.default_rng([9, index])) for index, scene in enumerate(large_scenes(count))]
    return float(np.mean([measure(clip.draw(style)) for clip in clips]))


def styled(pipeline: Any, lora: Path, style: str, count: int = 16) -> list[float]:
    """Return the style's measure, mean over clips, at each of `STRENGTHS` of a LoRA; it is unloaded after that."""
    told = large_scenes(count)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name=style, local_files_only=True)
    try:
        values = []
        for strength in STRENGTHS:
            pipeline.set_adapters([style], [strength])
            values.append(float(np.mean([MEASURES[style](clip) for clip in make(pipeline, prompts_of(told))])))
        return values
    finally:
        pipeline.unload_lora_weights()


def two_colours(index: int) -> tuple[Thing, Thing]:
    """Return a thing before and after its colour changes, for a prompt that travels."""
    rng = np.random.default_rng([15_000_000, index])
    first = random_scene(rng).things[0]
    while True:
        second = replace(first, colour=str(rng.choice(list(COLOURS))))
        if second.colour != first.colour and not second.held_out:
            return first, second


def travels(pipeline: Any, count: int = 64) -> float:
    """Return how many spans of prompts that change the colour half way show their own colour, 0..1."""
    from models._wan_spans import PromptSpans

    right_ = []
    for index in range(count):
        things = two_colours(index)
        lengths = (9, 8)
        prompts = [captions.sentence(Scene((thing,), "black")) for thing in things]
        request = VideoRequest(
            model="atelier",
            prompts=tuple(PromptSpan(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)),
            height=HEIGHT,
            width=WIDTH,
            fps=8,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            seed=index,
            outputs=(OutputSpec("mp4", 8),),
        )
        with PromptSpans(request, NUM_FRAMES, temporal=pipeline.vae_scale_factor_temporal).on(pipeline):
            [clip] = make(pipeline, prompts[:1], first_seed=index)
        spans = (clip[: lengths[0]], clip[lengths[0] :])
        right_ += [judge(span).colour == thing.colour for span, thing in zip(spans, things, strict=True)]
    return float(np.mean(right_))


def table(folder: Path, count: int = 64) -> str:
    """Measure a checkpoint and return the figures as a Markdown table."""
    pipeline = load(folder)
    trained, held_out = (follows(pipeline, name, count) for name in ("trained", "held_out"))
    unguided = follows(pipeline, "trained", count, guidance_scale=1.0)
    pictures = continues(pipeline, count)

    def words(found: Score) -> str:
        return " / ".join(f"{100 * getattr(found, word):.0f}" for word in WORDS) + f" %, all at once {found.joint:.0%}"

    rows = [
        ("colour / background / shape / motion as told, trained combinations", words(trained)),
        ("the same, combinations kept from training", words(held_out)),
        ("all four at once, guidance 1 and 5", f"{unguided.joint:.0%} and {trained.joint:.0%}"),
        ("a negative prompt that names the colour removes it", f"{removes(pipeline, count):.0%}"),
        ("a given first frame is kept, and moves as told", f"{pictures.psnr:.1f} dB, {pictures.motion:.0%}"),
        ("spans of a prompt that travels show their own colour", f"{travels(pipeline, count):.0%}"),
        ("the VAE's reconstruction of fresh clips", f"{reconstructs(pipeline, count):.1f} dB"),
    ]
    for style, measure in MEASURES.items():
        values = styled(pipeline, folder / "loras" / f"{style}.safetensors", style, max(1, count // 4))
        said = " ".join(f"{value:.2f}" for value in values)
        ends = f"{drawn(measure, 'plain'):.2f} and {drawn(measure, style):.2f}"
        rows.append((f"LoRA {style} at strengths 0 to 1: {measure.__name__}", f"{said}; drawn: {ends}"))
    return "\n".join(["| figure | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)])
