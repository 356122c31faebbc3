"""Stable Diffusion 1.x in one .safetensors file of the original layout, as people own it: judged and loaded offline.

Such a file has weights only. Widths, depths and the tokenizer's vocabulary come from `models/sd15`, which is part of
this package, or from a folder that the catalogue names (`parts.config`); no hub is ever asked.

Whether a file is what it should be is read from its header: names and shapes of its tensors.

Source: the names are those of https://github.com/CompVis/stable-diffusion; the vocabulary is OpenAI's CLIP's (MIT).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from models import Pipeline
from models._folder import PICKLES, check_safetensors
from polyreel.errors import CheckpointUnavailable

#: Configs and vocabulary of Stable Diffusion 1.5, in diffusers layout, without weights.
BUNDLED_CONFIG = Path(__file__).parent / "sd15"

#: By the first letters of a tensor's name, what else a file may be.
_OTHERS = {
    "conditioner.embedders.": "a Stable Diffusion XL checkpoint",
    "cond_stage_model.model.": "a Stable Diffusion 2 checkpoint",
    "model.diffusion_model.joint_blocks.": "a Stable Diffusion 3 checkpoint",
    "model.diffusion_model.double_blocks.": "a Flux checkpoint",
    "control_model.": "a ControlNet",
    "lora_": "a LoRA",
    "unet.": "a LoRA or one component",
    "down_blocks.": "one component (a UNet, a motion module) and no whole checkpoint",
    "cond_stage_model.transformer.embeddings.": "a checkpoint whose text encoder has the names of an old conversion "
    "(without text_model); save it anew with a present tool",
}

#: By the width of the text that its UNet attends to, likewise.
_OTHER_WIDTHS = {1024: "a Stable Diffusion 2 checkpoint", 2048: "a Stable Diffusion XL checkpoint"}

#: A tensor of each part, the part, and the shape that it must have by the configs of the UNet, VAE and text encoder.
_Config = dict[str, Any]  # Any: JSON
_EXPECTED: dict[str, tuple[str, Callable[[_Config], tuple[int, ...]]]] = {
    "model.diffusion_model.input_blocks.0.0.weight": (
        "unet",
        lambda config: (config["block_out_channels"][0], config["in_channels"], 3, 3),
    ),
    "first_stage_model.encoder.conv_in.weight": (
        "vae",
        lambda config: (config["block_out_channels"][0], config["in_channels"], 3, 3),
    ),
    "first_stage_model.decoder.conv_in.weight": (
        "vae",
        lambda config: (config["block_out_channels"][-1], config["latent_channels"], 3, 3),
    ),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (
        "text_encoder",
        lambda config: (config["vocab_size"], config["hidden_size"]),
    ),
}

Tokenizer = Any  # transformers is imported lazily
Module = Any  # torch too


def check_single_file(path: Path, config: Path | None) -> None:
    """Judge a file by its header, in milliseconds.

    Args:
        path: the checkpoint.
        config: a folder in diffusers layout that describes it, None for Stable Diffusion 1.5 as it is bundled.

    Raises:
        CheckpointUnavailable: `load_single_file` would not take it; says what it is instead, as far as that shows.
    """
    if not path.is_file():
        raise CheckpointUnavailable(f"There is no file {path}; give a .safetensors file.")
    if path.suffix.lower() in PICKLES:
        raise CheckpointUnavailable(
            f"{path} is a pickle, which may run code when it is read; only safetensors are loaded. Convert it."
        )
    if path.suffix.lower() != ".safetensors":
        raise CheckpointUnavailable(f"{path} is no checkpoint: give a .safetensors file or a folder.")
    check_safetensors(path)
    shapes = _shapes(path)
    for prefix, what in _OTHERS.items():
        if any(name.startswith(prefix) for name in shapes):
            raise CheckpointUnavailable(f"{path} is {what}; this family runs Stable Diffusion 1.x checkpoints.")
    folder = config or BUNDLED_CONFIG
    _check_text_width(path, shapes, read_config(folder, "unet")["cross_attention_dim"])
    for name, (component, expected) in _EXPECTED.items():
        if name not in shapes:
            raise CheckpointUnavailable(
                f"{path} has no {component} ({name} is missing); give a whole checkpoint: UNet, VAE and text encoder."
            )
        shape = expected(read_config(folder, component))
        if shapes[name] != shape:
            raise CheckpointUnavailable(
                f"{path} is no Stable Diffusion 1.x checkpoint for text to image: {name} has the shape "
                f"{shapes[name]}, and {folder / component / 'config.json'} says {shape}."
            )
    if config is not None and not any((config / "tokenizer" / name).is_file() for name in _VOCABULARIES):
        raise CheckpointUnavailable(f"parts.config: {config} has no tokenizer with {' or '.join(_VOCABULARIES)}.")


#: Files of which a tokenizer's folder has at least one.
_VOCABULARIES = ("tokenizer.json", "vocab.json")


def _check_text_width(path: Path, shapes: dict[str, tuple[int, ...]], expected: int) -> None:
    widths = {shape[-1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")}
    for width in widths - {expected}:
        what = _OTHER_WIDTHS.get(width, "made for another text encoder")
        raise CheckpointUnavailable(
            f"{path} is {what}: its UNet attends to text {width} wide, not {expected}. This family runs Stable "
            "Diffusion 1.x checkpoints."
        )


def read_config(folder: Path, component: str) -> _Config:
    """Return the config of a component of a folder in diffusers layout.

    Raises:
        CheckpointUnavailable: it is missing or damaged.
    """
    file = folder / component / "config.json"
    try:
        config: _Config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise CheckpointUnavailable(f"{file} is missing or damaged; a folder in diffusers layout has it.") from err
    return config


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a safetensors file by name; reads its header only."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)


def load_single_file(path: Path, config: Path | None, motion_adapter: Module, dtype: Any) -> Pipeline:
    """Return an AnimateDiffPipeline of the file and a motion adapter, on the CPU.

    Args:
        path, config: as `check_single_file` found them good.
        motion_adapter: a diffusers MotionAdapter in `dtype`.
        dtype: a torch dtype.

    Raises:
        CheckpointUnavailable: a tensor is missing or has another shape.
        MemoryError, torch.OutOfMemoryError: as they are.
    """
    import torch
    from diffusers import AnimateDiffPipeline

    own = {} if config else {"tokenizer": clip_tokenizer()}
    try:
        return AnimateDiffPipeline.from_single_file(
            str(path),
            config=str(config or BUNDLED_CONFIG),
            local_files_only=True,
            dtype=dtype,
            motion_adapter=motion_adapter,
            **own,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as err:  # diffusers raises half a dozen kinds, for a missing tensor that of copying from nowhere
        raise CheckpointUnavailable(
            f"{path} does not load as Stable Diffusion 1.x, tensors may be missing: {err}"
        ) from err


def clip_tokenizer() -> Tokenizer:
    """Return the tokenizer of CLIP ViT-L/14, which is Stable Diffusion 1.x's, from the bundled vocabulary."""
    from transformers import CLIPTokenizer

    pieces, merges = _clip_vocabulary()
    return CLIPTokenizer(vocab=dict(pieces), merges=list(merges), model_max_length=77)


@cache
def _clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the number of each token, and the merges in their order."""
    lines = (BUNDLED_CONFIG / "tokenizer" / "merges.txt").read_text(encoding="utf-8").strip().split("\n")
    merges = [(left, right) for left, right in (line.split() for line in lines[1:])]
    # A byte is written as the character of its number where that can be seen, else as one from 256 on.
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in seen] + [chr(256 + number) for number in range(256 - len(seen))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, merges
