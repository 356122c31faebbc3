"""The latent upsampler of LTX: a small network that makes latents larger between two passes.

The part "upsampler" of a catalogue entry: a folder of the network itself, or one with the folder `latent_upsampler` in
it (Lightricks/ltxv-spatial-upscaler-0.9.7, Lightricks/LTX-2).
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from models import Checkpoint
from models._folder import check_safetensors, weight_files
from models._ltx_pass import Tensor
from models._progress import Meter
from models._run import run_pipeline
from models.loaded import LoadedModel
from polyreel.errors import CheckpointUnavailable, OutOfMemory

_ROLE = "upsampler"

#: Class of the network: where diffusers keeps it, and the pipeline that runs it.
_CLASSES = {
    "LTXLatentUpsamplerModel": ("diffusers.pipelines.ltx.modeling_latent_upsampler", "LTXLatentUpsamplePipeline"),
    "LTX2LatentUpsamplerModel": ("diffusers.pipelines.ltx2.latent_upsampler", "LTX2LatentUpsamplePipeline"),
}


def check_upsampler(checkpoint: Checkpoint, class_name: str, channels: int) -> None:
    """Look at the part "upsampler", if there is one, without loading it.

    Args:
        class_name: that the checkpoint's pipelines need.
        channels: of the checkpoint's latents.

    Raises:
        CheckpointUnavailable: it is missing, incomplete, or made for something else.
    """
    if _ROLE not in checkpoint.parts:
        return
    folder = _folder(checkpoint.parts[_ROLE])
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        found, latents = content["_class_name"], content["in_channels"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise CheckpointUnavailable(f"parts.{_ROLE}: {config} is missing or damaged; fetch it again.") from err
    if found != class_name or latents != channels:
        raise CheckpointUnavailable(
            f"parts.{_ROLE}: {config} says {found} for latents of {latents} channels, and this checkpoint needs "
            f"{class_name} for {channels}; choose the upsampler that belongs to it."
        )
    if content.get("temporal_upsample") or not content.get("spatial_upsample", True):
        raise CheckpointUnavailable(f"parts.{_ROLE}: {config} adds frames and not pixels; choose a spatial upsampler.")
    files = weight_files(folder)
    if not files:
        raise CheckpointUnavailable(f"parts.{_ROLE}: {folder} has no safetensors; fetch it again.")
    for file in files:
        check_safetensors(file)


def load_upsampler(model: LoadedModel) -> None:
    """Keep the network with a loaded model whose checkpoint names one. It was checked.

    It stays on the device whatever the model's placement: a few hundred megabytes that are used once per job.

    Raises:
        CheckpointUnavailable: it does not load.
        OutOfMemory: it does not fit.
    """
    if _ROLE not in model.checkpoint.parts:
        return
    import torch

    folder = _folder(model.checkpoint.parts[_ROLE])
    class_name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    network_class = getattr(importlib.import_module(_CLASSES[class_name][0]), class_name)
    try:
        network = network_class.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=getattr(torch, model.dtype)
        )
        model.keep[_ROLE] = network.to(model.device)
    except torch.OutOfMemoryError as err:
        raise OutOfMemory(f"{folder.name} does not fit on {model.device}.", "load") from err
    except Exception as err:  # as for the checkpoint itself
        raise CheckpointUnavailable(f"parts.{_ROLE}: {folder} does not load as {class_name}: {err}") from err


def upsample(model: LoadedModel, latents: Tensor, meter: Meter) -> Tensor:
    """Return larger latents in the same scale; only for a model that has an upsampler.

    Args:
        latents: (1, C, F, H, W), as a pass returned them.

    Raises:
        GenerationFailed, OutOfMemory, Cancelled: see `models._run.run_pipeline`.
    """
    network: Any = model.keep[_ROLE]
    class_name = _CLASSES[type(network).__name__][1]
    pipeline = model.variant(class_name, latent_upsampler=network)
    scale = pipeline.vae_spatial_compression_ratio
    larger: Tensor = run_pipeline(
        model,
        pipeline,
        meter,
        generator=(),
        latents=latents,
        height=latents.shape[3] * scale,
        width=latents.shape[4] * scale,
        output_type="latent",
    ).frames
    return larger.float()  # the second pass mixes noise into it in the dtype that it comes in


def has_upsampler(model: LoadedModel) -> bool:
    """Return whether a model was loaded with an upsampler."""
    return _ROLE in model.keep


def _folder(path: Path) -> Path:
    inner = path / "latent_upsampler"
    return inner if inner.is_dir() else path
