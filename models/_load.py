"""Loads a checkpoint folder as a diffusers pipeline: safetensors only, from disk only, refused before it can hurt.

A family says which classes it runs; this module decides what a broken checkpoint is called, and where weights go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from models import Checkpoint, Pipeline
from models.loaded import LoadedModel
from polyreel.entries import Placement
from polyreel.errors import CheckpointUnavailable, ConfigurationError, OutOfMemory, PolyreelError

DTYPES = ("float32", "bfloat16", "float16")

#: Files that may run code when they are read (pickles). diffusers would not read them beside safetensors; a folder
#: that holds them is refused all the same, so that nobody has to find out which file was used.
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def load_model(
    checkpoint: Checkpoint,
    class_names: Collection[str],
    *,
    device: str,
    dtype: str,
    placement: Placement,
    float32: Sequence[str] = (),
    prepare: Callable[[Pipeline], None] = lambda pipeline: None,
) -> LoadedModel:
    """Load a checkpoint folder as the class that its `model_index.json` names.

    Args:
        checkpoint: its `path` is a folder in diffusers layout.
        class_names: diffusers pipeline classes that the family runs, such as {"WanPipeline"}.
        device: "cpu", "cuda" or "cuda:N".
        dtype: one of `DTYPES`.
        placement: where the weights go.
        float32: components that stay in float32 whatever `dtype` says, e.g. ("vae",).
        prepare: changes the pipeline before its weights are placed.

    Raises:
        CheckpointUnavailable: the folder is missing, incomplete, of another class, or holds pickles.
        OutOfMemory: it does not fit on the device.
        ConfigurationError: `dtype` is not one of `DTYPES`.
    """
    check_dtype(dtype)
    class_name = check_folder(checkpoint.path, class_names)

    import diffusers
    import torch

    quiet_libraries()
    dtypes = {"default": getattr(torch, dtype), **dict.fromkeys(float32, torch.float32)}
    # The concrete class, not DiffusionPipeline: that one ignores some components that a caller passes.
    pipeline_class = getattr(diffusers, class_name)
    try:
        pipeline = pipeline_class.from_pretrained(
            str(checkpoint.path), local_files_only=True, use_safetensors=True, dtype=dtypes
        )
    except Exception as err:  # diffusers and transformers raise a dozen kinds for a broken folder
        raise CheckpointUnavailable(f"{checkpoint.path} does not load as {class_name}: {err}") from err
    prepare(pipeline)
    return place(pipeline, checkpoint, device=device, dtype=dtype, placement=placement)


def place(pipeline: Pipeline, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
    """Set a pipeline up as its catalogue entry says, and put its weights where they live.

    Raises:
        CheckpointUnavailable: an unknown scheduler, scheduler setting or attention backend, or no such device.
        OutOfMemory: it does not fit on the device.
    """
    import torch

    pipeline.set_progress_bar_config(disable=True)
    try:
        set_up(pipeline, checkpoint)
        pipeline.to(device)
    except torch.OutOfMemoryError as err:
        raise OutOfMemory(f"{checkpoint.name or checkpoint.path.name} does not fit on {device}.", "load") from err
    except PolyreelError:
        raise
    except Exception as err:
        raise CheckpointUnavailable(
            f"{checkpoint.name or checkpoint.path.name} does not fit on {device}: {type(err).__name__}: {err}"
        ) from err
    return LoadedModel(pipeline, checkpoint, device=device, dtype=dtype, placement=placement)


def set_up(pipeline: Pipeline, checkpoint: Checkpoint) -> None:
    """Apply the catalogue entry's scheduler settings, attention backend and step cache.

    Raises:
        CheckpointUnavailable: names what does not exist.
    """
    import diffusers

    changes = dict(checkpoint.scheduler)
    if changes:
        name = changes.pop("class", type(pipeline.scheduler).__name__)
        scheduler_class = getattr(diffusers, str(name), None)
        if scheduler_class is None or not name.endswith("Scheduler"):
            raise CheckpointUnavailable(f"scheduler.class: diffusers has no scheduler {name!r}.")
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **changes)
    for denoiser in denoisers(pipeline):
        if checkpoint.attention:
            try:
                denoiser.set_attention_backend(checkpoint.attention)
            except (AttributeError, ValueError, RuntimeError) as err:
                raise CheckpointUnavailable(f"attention: {checkpoint.attention!r} cannot be used here: {err}") from err
        if checkpoint.step_cache:
            try:
                denoiser.enable_cache(diffusers.FirstBlockCacheConfig(threshold=checkpoint.step_cache))
            except (AttributeError, ValueError) as err:
                raise CheckpointUnavailable(f"step_cache: this model has none: {err}") from err


def denoisers(pipeline: Pipeline) -> list[Any]:
    """Return the modules that denoise: one, or two for Wan 2.2 A14B."""
    found = [getattr(pipeline, name, None) for name in ("transformer", "transformer_2", "unet")]
    return [module for module in found if module is not None]


def check_dtype(dtype: str) -> None:
    """Raise `ConfigurationError` unless `dtype` is one of `DTYPES`."""
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")


def check_folder(checkpoint: Path, class_names: Collection[str]) -> str:
    """Refuse what would fail, or run code, in the middle of loading.

    Returns:
        The pipeline class that the folder names, one of `class_names`.

    Raises:
        CheckpointUnavailable: names the file and what to do about it.
    """
    if not checkpoint.is_dir():
        raise CheckpointUnavailable(f"{checkpoint} is not a folder; give a checkpoint folder in diffusers layout.")

    index = checkpoint / "model_index.json"
    if not index.is_file():
        raise CheckpointUnavailable(f"{index} is missing; a checkpoint folder in diffusers layout has this file.")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        found = content["_class_name"]
    except (ValueError, KeyError, TypeError) as err:
        raise CheckpointUnavailable(f"{index} is damaged or names no _class_name; fetch it again.") from err
    if found not in class_names:
        raise CheckpointUnavailable(
            f"{index} says {found}, and this family runs {', '.join(sorted(class_names))}; "
            "choose another family or another checkpoint."
        )

    for name, value in content.items():
        # Components are [library, class]; [null, null] is one that this checkpoint goes without.
        if isinstance(value, list) and value[0] is not None and not (checkpoint / name).is_dir():
            raise CheckpointUnavailable(
                f"{checkpoint / name} is missing; the checkpoint is incomplete, fetch it again."
            )

    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path in files:
        if path.suffix.lower() in PICKLES:
            raise CheckpointUnavailable(
                f"{path} is a pickle, which may run code when it is read; only safetensors are loaded. "
                "Convert it, or delete it when the folder has the same weights as safetensors."
            )
    for path in files:
        if path.suffix == ".safetensors":
            check_safetensors(path)
    return str(found)


def quiet_libraries() -> None:
    """Keep diffusers and transformers from drawing bars into the log, and from quoting prompts there.

    Both warn about a prompt that is too long for the text encoder by printing what they cut off. Errors come as
    exceptions anyway.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()


def check_safetensors(path: Path) -> None:
    """Raise `CheckpointUnavailable` when a file is cut short or is not safetensors; reads its header only."""
    from safetensors import SafetensorError, safe_open

    try:
        # Reads the header and compares its offsets with the length of the file, not the weights.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as err:
        raise CheckpointUnavailable(f"{path} is incomplete or damaged ({err}); fetch it again.") from err
