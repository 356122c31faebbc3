"""From a checkpoint to an AnimateDiff pipeline: Stable Diffusion 1.x as people have it, and a motion adapter.

    AnimateDiffPipeline folder                                         as it is
    StableDiffusionPipeline folder    + parts.motion_adapter
    one .safetensors file             + parts.motion_adapter           see `models._single_file`

`parts.motion_adapter` is a folder with a diffusers MotionAdapter: v1.5-2, v1.5-3 and AnimateLCM's differ in their
config only. `parts.lcm_lora` is a LoRA that belongs to the model, as AnimateLCM's: it is merged into the weights when
the model is loaded, so that it costs nothing per step and knows nothing of a job's own LoRAs. `parts.config` describes
a single file that is not of Stable Diffusion 1.5's usual sizes.

Sources: https://huggingface.co/docs/diffusers/api/pipelines/animatediff; AnimateLCM, arXiv 2402.00769
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models import AdapterFile, Checkpoint, Pipeline
from models._adapters import Adapters
from models._folder import check_folder, check_safetensors, weight_files
from models._load import check_dtype, load_model, place, quiet_libraries
from models._native import refuse_native
from models._single_file import BUNDLED_CONFIG, check_single_file, load_single_file, read_config
from models.loaded import LoadedModel
from polyreel.entries import Placement
from polyreel.errors import AdapterUnavailable, CheckpointUnavailable, OutOfMemory

_WHOLE, _IMAGES = "AnimateDiffPipeline", "StableDiffusionPipeline"

#: Components that folders for images have, and nobody here loads; the first is 1.2 GB.
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")

#: Roles that an entry's `parts` may have.
PARTS = ("motion_adapter", "lcm_lora", "config")

#: What the motion adapters were trained with. A checkpoint for images brings the schedule of images ("scaled_linear"),
#: under which AnimateDiff's videos flicker and fade. What a catalogue entry says comes on top.
SCHEDULER: dict[str, Any] = {  # Any: as diffusers takes it
    "beta_schedule": "linear",
    "clip_sample": False,
    "timestep_spacing": "linspace",
    "steps_offset": 1,
}

#: How much of `parts.lcm_lora` is merged: what AnimateLCM's model card runs with.
LCM_LORA_STRENGTH = 0.8

Module = Any  # torch is imported lazily


def check(checkpoint: Checkpoint) -> None:
    """Judge a checkpoint and its parts by their indexes and headers, in milliseconds.

    Raises:
        CheckpointUnavailable: `load` would not take it; names the part, the file and what to do.
    """
    refuse_native(checkpoint, "AnimateDiff")
    parts = checkpoint.parts
    for role in parts:
        if role not in PARTS:
            raise CheckpointUnavailable(f"parts.{role}: AnimateDiff has no such part; it has {', '.join(PARTS)}.")
    if checkpoint.path.is_dir():
        if "config" in parts:
            raise CheckpointUnavailable("parts.config: this is for single files; a folder has configs of its own.")
        if _class_of(checkpoint.path) == _WHOLE:
            if "motion_adapter" in parts:
                raise CheckpointUnavailable(
                    f"parts.motion_adapter: {checkpoint.path} has motion modules of its own; leave this part out."
                )
        else:
            _check_motion_adapter(parts, read_config(checkpoint.path, "unet"))
    else:
        check_single_file(checkpoint.path, parts.get("config"))
        _check_motion_adapter(parts, read_config(parts.get("config", BUNDLED_CONFIG), "unet"))
    if "lcm_lora" in parts:
        _check_lora(parts["lcm_lora"])


def load(checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
    """Load a checkpoint in any of the forms above; see `models.Family.load`."""
    check_dtype(dtype)
    check(checkpoint)

    def prepare(pipeline: Pipeline) -> None:
        _empty_motion_adapter(pipeline)
        if "lcm_lora" in checkpoint.parts:
            _merge(pipeline, checkpoint.parts["lcm_lora"])
        mend_clip_skip(pipeline)

    if checkpoint.path.is_dir() and _class_of(checkpoint.path) == _WHOLE:
        return load_model(checkpoint, [_WHOLE], device=device, dtype=dtype, placement=placement, prepare=prepare)

    import diffusers
    import torch

    quiet_libraries()
    try:
        pipeline = _animate(checkpoint, getattr(torch, dtype))
    except (MemoryError, torch.OutOfMemoryError) as err:
        raise OutOfMemory(f"{checkpoint.name or checkpoint.path.name} does not fit into memory.", "load") from err
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, **SCHEDULER)
    prepare(pipeline)
    return place(pipeline, checkpoint, device=device, dtype=dtype, placement=placement)


def mend_clip_skip(pipeline: Pipeline) -> None:
    """Let diffusers find the layers of the text encoder, for `clip_skip`.

    transformers 5.6 dissolved CLIPTextModel.text_model into CLIPTextModel; diffusers 0.42 still asks for it.
    """
    if not hasattr(pipeline.text_encoder, "text_model"):
        # Set past torch's __setattr__: as a submodule it would contain itself.
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)


def _class_of(folder: Path) -> str:
    return check_folder(folder, [_WHOLE, _IMAGES], unused=_UNUSED)


def _check_motion_adapter(parts: dict[str, Path], unet: dict[str, Any]) -> None:
    """Raise `CheckpointUnavailable` unless there is a motion adapter for a UNet of this config."""
    if "motion_adapter" not in parts:
        raise CheckpointUnavailable(
            "parts.motion_adapter is missing: a checkpoint for images needs a folder with a MotionAdapter, such as "
            "guoyww/animatediff-motion-adapter-v1-5-3."
        )
    folder = parts["motion_adapter"]
    if not folder.is_dir():
        raise CheckpointUnavailable(f"parts.motion_adapter: {folder} is not a folder in diffusers layout.")
    config = read_config(folder, ".")
    if config.get("_class_name") != "MotionAdapter":
        raise CheckpointUnavailable(
            f"parts.motion_adapter: {folder / 'config.json'} says {config.get('_class_name')}, not MotionAdapter."
        )
    if config.get("conv_in_channels"):
        raise CheckpointUnavailable(
            f"parts.motion_adapter: {folder} is PIA's, whose UNet takes pictures; not run here."
        )
    for own, other in (("block_out_channels", "block_out_channels"), ("motion_layers_per_block", "layers_per_block")):
        if config.get(own) != unet.get(other):
            raise CheckpointUnavailable(
                f"parts.motion_adapter: {folder} was made for another UNet: its {own} is {config.get(own)}, and the "
                f"checkpoint's {other} is {unet.get(other)}. SD 1.x needs an adapter for SD 1.5."
            )
    files = weight_files(folder)
    if not files:
        raise CheckpointUnavailable(f"parts.motion_adapter: {folder} has no diffusion_pytorch_model.safetensors.")
    for file in files:
        if not file.is_file():
            raise CheckpointUnavailable(f"parts.motion_adapter: {file} is missing; fetch it again.")
        check_safetensors(file)


def _check_lora(path: Path) -> None:
    if not path.is_file() or path.suffix != ".safetensors":
        raise CheckpointUnavailable(f"parts.lcm_lora: {path} is not a .safetensors file.")
    check_safetensors(path)


def _animate(checkpoint: Checkpoint, dtype: Any) -> Pipeline:
    """Return an AnimateDiffPipeline of a checkpoint for images and its motion adapter, on the CPU."""
    import diffusers
    import torch

    folder = checkpoint.parts["motion_adapter"]
    try:
        adapter = diffusers.MotionAdapter.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=dtype
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as err:  # diffusers raises a dozen kinds for a broken folder
        raise CheckpointUnavailable(f"parts.motion_adapter: {folder} does not load: {err}") from err
    if not checkpoint.path.is_dir():
        return load_single_file(checkpoint.path, checkpoint.parts.get("config"), adapter, dtype)
    try:
        return diffusers.AnimateDiffPipeline.from_pretrained(
            str(checkpoint.path),
            motion_adapter=adapter,
            feature_extractor=None,
            image_encoder=None,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as err:
        raise CheckpointUnavailable(f"{checkpoint.path} does not load as {_IMAGES}: {err}") from err


def _empty_motion_adapter(pipeline: Pipeline) -> None:
    """Drop the motion adapter's own weights, nearly 1 GB in half precision: the UNet has copied them.

    The component stays, for its config, with one number that tells its dtype and device.
    """
    import torch

    adapter = pipeline.motion_adapter
    dtype = adapter.dtype
    adapter.down_blocks, adapter.up_blocks, adapter.mid_block = torch.nn.ModuleList(), torch.nn.ModuleList(), None
    adapter.emptied = torch.nn.Parameter(torch.zeros(1, dtype=dtype), requires_grad=False)


def _merge(pipeline: Pipeline, lora: Path) -> None:
    """Add `parts.lcm_lora` to the weights, once and for all."""
    adapters = Adapters(pipeline)
    try:
        with adapters.using([AdapterFile("parts.lcm_lora", lora, strength=LCM_LORA_STRENGTH)]):
            pipeline.fuse_lora()
            adapters.unload_all()
    except AdapterUnavailable as err:
        raise CheckpointUnavailable(str(err)) from err
