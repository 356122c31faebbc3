"""Loads a checkpoint folder as a diffusers pipeline: safetensors only, from disk only, refused before it can hurt.

A family says which classes it runs; this module decides what a broken checkpoint is called, and where weights go.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from inspect import signature

from models import Checkpoint, Pipeline, _shared
from models._folder import check_folder as check_folder  # both are imported from here as well
from models._folder import check_safetensors as check_safetensors
from models.loaded import LoadedModel
from models.placement import apply, denoisers
from polyreel.entries import Placement
from polyreel.errors import CheckpointUnavailable, ConfigurationError, OutOfMemory, PolyreelError, did_you_mean

DTYPES = ("float32", "bfloat16", "float16")


def load_model(
    checkpoint: Checkpoint,
    class_names: Collection[str],
    *,
    device: str,
    dtype: str,
    placement: Placement,
    float32: Sequence[str] = (),
    shared: Sequence[str] = (),
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
        shared: components that another model may use as well, e.g. ("tokenizer", "text_encoder"): only those that no
            LoRA, textual inversion or setting of a job ever changes. Shared while both models are resident.
        prepare: changes the pipeline before its weights are placed.

    Raises:
        CheckpointUnavailable: the folder is missing, incomplete, of another class, or needs pickles or code of its own.
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
    # Offload hooks move a component for the one pipeline that they belong to.
    names = tuple(shared) if placement.mode in ("auto", "resident") else ()
    where = {name: {"dtype": "float32" if name in float32 else dtype, "device": device} for name in names}
    here = {name: found for name in names for found in _shared.find(checkpoint.path, [name], **where[name]).values()}
    try:
        pipeline = pipeline_class.from_pretrained(
            str(checkpoint.path), local_files_only=True, use_safetensors=True, dtype=dtypes, **here
        )
    except (MemoryError, torch.OutOfMemoryError) as err:
        raise OutOfMemory(f"{checkpoint.name or checkpoint.path.name} does not fit into memory.", "load") from err
    except Exception as err:  # diffusers and transformers raise a dozen kinds for a broken folder
        raise CheckpointUnavailable(f"{checkpoint.path} does not load as {class_name}: {err}") from err
    prepare(pipeline)
    model = place(pipeline, checkpoint, device=device, dtype=dtype, placement=placement)
    for name in names:
        _shared.remember(pipeline, checkpoint.path, [name], **where[name])
    return model


def place(pipeline: Pipeline, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
    """Set a pipeline up as its catalogue entry says, and put its weights where they live.

    Raises:
        CheckpointUnavailable: an unknown scheduler, scheduler setting or attention backend, a placement that the
            pipeline cannot do, or no such device.
        OutOfMemory: it does not fit on the device.
    """
    import torch

    pipeline.set_progress_bar_config(disable=True)
    try:
        set_up(pipeline, checkpoint)
        placed = apply(pipeline, placement, device=device, dtype=dtype)
    except torch.OutOfMemoryError as err:
        raise OutOfMemory(f"{checkpoint.name or checkpoint.path.name} does not fit on {device}.", "load") from err
    except PolyreelError:
        raise
    except Exception as err:
        raise CheckpointUnavailable(
            f"{checkpoint.name or checkpoint.path.name} does not fit on {device}: {type(err).__name__}: {err}"
        ) from err
    return LoadedModel(pipeline, checkpoint, device=device, dtype=dtype, placement=placed)


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
        if getattr(scheduler_class, "order", 1) != 1:
            # Such a scheduler calls the denoiser twice a step, and diffusers counts each call as a step.
            raise CheckpointUnavailable(f"scheduler.class: {name} takes two calls for a step; choose another.")
        known = set(signature(scheduler_class).parameters)
        for setting in changes:
            if setting not in known:  # from_config would leave it out without a word
                raise CheckpointUnavailable(
                    f"scheduler.{setting}: {name} has no such setting.{did_you_mean(setting, known)} "
                    f"It has: {', '.join(sorted(known))}."
                )
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


def check_dtype(dtype: str) -> None:
    """Raise `ConfigurationError` unless `dtype` is one of `DTYPES`."""
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")


def quiet_libraries() -> None:
    """Keep diffusers and transformers from drawing bars into the log, and from quoting prompts there.

    Both warn about a prompt that is too long for the text encoder by printing what they cut off. Errors come as
    exceptions anyway; what they say of them beside that goes through our log, which takes secrets out.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
        library.disable_default_handler()
        library.enable_propagation()
