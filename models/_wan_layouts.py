"""The layouts of Wan's checkpoints: which there are, what each can do, and what it insists on.

Checkpoints are folders in diffusers layout. Their `model_index.json` says which layout they are of:

| `_class_name` | further | such as |
|---|---|---|
| WanPipeline | | Wan-AI/Wan2.1-T2V-1.3B-Diffusers, -14B |
| WanPipeline | transformer_2, boundary_ratio | Wan-AI/Wan2.2-T2V-A14B-Diffusers |
| WanPipeline | expand_timesteps | Wan-AI/Wan2.2-TI2V-5B-Diffusers: text, or a picture for the first frame |
| WanImageToVideoPipeline | image_encoder | Wan-AI/Wan2.1-I2V-14B-480P-Diffusers, -720P, Wan2.1-FLF2V-14B-720P |
| WanImageToVideoPipeline | transformer_2, boundary_ratio | Wan-AI/Wan2.2-I2V-A14B-Diffusers |

Source: https://huggingface.co/docs/diffusers/api/pipelines/wan
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import wraps
from math import lcm
from pathlib import Path
from typing import Any

from models import Pipeline
from models._geometry import legal_frames, round_up
from polyreel.entries import Native, Task
from polyreel.errors import CheckpointUnavailable

TEXT_CLASS, IMAGE_CLASS = "WanPipeline", "WanImageToVideoPipeline"
CLASSES = frozenset({TEXT_CLASS, IMAGE_CLASS})


def check_layout(folder: Path, class_name: str) -> frozenset[Task]:
    """Return what a checkpoint can do, from its json files alone.

    Args:
        class_name: one of `CLASSES`, from `model_index.json`.

    Raises:
        CheckpointUnavailable: a file is missing or damaged, or one of two transformers would be missing or idle.
    """
    index = _read(folder / "model_index.json")
    has_second = (index.get("transformer_2") or [None])[0] is not None
    ratio = index.get("boundary_ratio")
    if has_second != (ratio is not None):
        raise CheckpointUnavailable(
            f"{folder / 'model_index.json'} has boundary_ratio {ratio} and "
            f"{'a' if has_second else 'no'} transformer_2; both belong together, fetch it again."
        )
    return _tasks(class_name, bool(index.get("expand_timesteps")), _read(folder / "transformer" / "config.json"))


def _tasks(class_name: str, expand_timesteps: bool, transformer: dict[str, Any]) -> frozenset[Task]:
    """Return what a layout can do; `transformer` is its configuration."""
    every: frozenset[Task] = frozenset({"upscale", "prompt_travel"})
    if class_name == TEXT_CLASS:
        # TI2V writes the picture over the first latent frame and has no place for a last one.
        return every | {"t2v", "i2v"} if expand_timesteps else every | {"t2v"}
    if transformer.get("pos_embed_seq_len"):
        # FLF2V: its position embedding is for the tokens of two pictures, no fewer.
        return every | {"first_last"}
    return every | {"i2v"} if expand_timesteps else every | {"i2v", "first_last"}


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as err:
        raise CheckpointUnavailable(f"{path} is missing or damaged; fetch it again.") from err


def join_pictures(pipeline: Pipeline) -> None:
    """Let Wan 2.1 I2V attend to two pictures: their CLIP tokens side by side, as FLF2V has them.

    The pipeline stacks the pictures as samples of a batch, which only FLF2V's position embedding turns into tokens of
    one; without it the call fails. The checkpoint takes any number of tokens, but was published for one picture:
    how good its last frames are was not looked at.
    """
    config = pipeline.transformer.config
    if config.image_dim is None or config.pos_embed_seq_len:
        return
    encode_image = pipeline.encode_image

    @wraps(encode_image)
    def encode_images_as_one(*args: Any, **kwargs: Any) -> Any:
        embeds = encode_image(*args, **kwargs)  # (pictures, 257, image_dim)
        return embeds.flatten(0, 1).unsqueeze(0)  # (1, pictures * 257, image_dim)

    pipeline.encode_image = encode_images_as_one


def multiples(pipeline: Pipeline) -> tuple[int, int]:
    """Return what height and width are multiples of: one patch of the transformer, seen in pixels.

    The pipeline itself checks for 16 only and floors to the patch in silence: 80 would become 64 for TI2V.
    """
    return _multiples(pipeline.transformer.config.patch_size, pipeline.vae_scale_factor_spatial)


def _multiples(patch_size: Sequence[int], scale: int) -> tuple[int, int]:
    _, patch_height, patch_width = patch_size
    return lcm(16, scale * patch_height), lcm(16, scale * patch_width)


def check_native(folder: Path, native: Native) -> None:
    """Judge native sizes and lengths by a checkpoint's json files; what they do not say is diffusers' default.

    Raises:
        CheckpointUnavailable: the checkpoint makes no such size or number of frames, or a file is missing or damaged.
    """
    transformer, vae = (_read(folder / part / "config.json") for part in ("transformer", "vae"))
    vertical, horizontal = _multiples(transformer.get("patch_size", (1, 2, 2)), vae.get("scale_factor_spatial", 8))
    for height, width in native.sizes:
        if height % vertical or width % horizontal:
            raise CheckpointUnavailable(
                f"native.sizes: this checkpoint makes heights in multiples of {vertical} and widths in multiples of "
                f"{horizontal}, got {[height, width]}; nearest larger: "
                f"{[round_up(height, vertical), round_up(width, horizontal)]}."
            )
    temporal = vae.get("scale_factor_temporal", 4)
    for num_frames in native.num_frames:
        legal = legal_frames(num_frames, temporal)
        if num_frames != legal:
            raise CheckpointUnavailable(
                f"native.num_frames: this checkpoint makes {temporal}k + 1 frames, got {num_frames}; "
                f"next larger: {legal}."
            )
