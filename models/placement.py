"""Where a model's weights live while it runs: what fits, and how a pipeline is brought there.

`weigh` and `choose` look at sizes only; `apply` changes a pipeline. Which other models are in memory is not known
here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from models import Checkpoint, Pipeline
from models._folder import components, has_weights, weight_files
from polyreel.entries import Placement
from polyreel.errors import CheckpointUnavailable, OutOfMemory

Mode = Literal["resident", "cpu_offload", "group_offload"]

#: Attributes of a pipeline that hold what denoises.
DENOISERS = ("transformer", "transformer_2", "unet")

#: Bytes of one number, by our names of dtypes and by those in a safetensors header.
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FILE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "I16": 2, "U16": 2}

#: Parts of the names of layers that keep their dtype under fp8 storage, as the models of diffusers list them.
_NOT_FP8 = ("norm", "embed", "proj_in", "proj_out")

#: Where a single file of the original Stable Diffusion layout keeps what diffusers keeps in folders.
_SINGLE_FILE = {"model.diffusion_model.": "unet", "cond_stage_model.": "text_encoder", "first_stage_model.": "vae"}


@dataclass(frozen=True)
class Weights:
    """What a checkpoint's weights take once they are in memory.

    Args:
        components: bytes of each component in the dtype that it is loaded in.
        as_fp8: the same with the denoisers stored as float8.
        largest_tensor: bytes of the largest single tensor: what group offload moves at once.
    """

    components: dict[str, int]
    as_fp8: dict[str, int]
    largest_tensor: int

    def needed_bytes(self, mode: str, *, fp8: bool, working_bytes: int = 0, shared: Iterable[str] = ()) -> int:
        """Return the most bytes on the device while a job runs.

        Args:
            mode: "auto" counts as "resident".
            working_bytes: what denoising and decoding take beside the weights.
            shared: components that are there already, of another resident model.
        """
        own = self.as_fp8 if fp8 else self.components
        if mode in ("auto", "resident"):
            return sum(size for name, size in own.items() if name not in set(shared)) + working_bytes
        if mode == "group_offload":
            return 2 * self.largest_tensor + working_bytes  # the next layer is fetched while one runs
        # Text encoders have gone back before the latents are there.
        beside = dict.fromkeys((*DENOISERS, "vae"), working_bytes)
        return max((size + beside.get(name, 0) for name, size in own.items()), default=working_bytes)


#: Of a model whose size does not matter.
NO_WEIGHTS = Weights({}, {}, 0)


def choose(
    placement: Placement,
    weights: Weights,
    *,
    working_bytes: int,
    free_bytes: int | None,
    device: str,
    shared: Iterable[str] = (),
) -> Placement:
    """Decide what a catalogue entry leaves open: the fastest placement that fits.

    Resident; resident with the denoisers as float8; one component at a time, then with float8; layer by layer. An
    entry that names a mode or says `fp8: false` keeps it, whether it fits or not.

    Args:
        placement: of the entry.
        weights: from `weigh`.
        working_bytes: what a job takes beside the weights.
        free_bytes: of the device, None when it is not limited.
        device: "cpu" is always resident; nothing is gained by moving weights to where they are.
        shared: components that are on the device already, of another model.

    Returns:
        `placement` with a mode that is not "auto" and `fp8` that is not None.

    Raises:
        OutOfMemory: nothing fits; names what each way would need.
    """
    fp8 = bool(placement.fp8)
    if placement.mode != "auto":
        return placement.model_copy(update={"fp8": fp8})
    if free_bytes is None or device == "cpu":
        return placement.model_copy(update={"mode": "resident", "fp8": fp8})
    needs = {
        (mode, fp8): weights.needed_bytes(mode, fp8=fp8, working_bytes=working_bytes, shared=shared)
        for mode, fp8 in _ways(placement.fp8)
    }
    for (mode, fp8), needed in needs.items():
        if needed <= free_bytes:
            return placement.model_copy(update={"mode": mode, "fp8": fp8})
    ways = ", ".join(f"{mode}{' with fp8' if fp8 else ''} {_gb(needed)}" for (mode, fp8), needed in needs.items())
    raise OutOfMemory(
        f"{device} has {_gb(free_bytes)} free, and this model needs: {ways}. Free the device, or lower the entry's "
        "defaults.",
        "load",
    )


def _ways(fp8: bool | None) -> list[tuple[Mode, bool]]:
    """Return what is tried, the fastest first."""
    plain: list[tuple[Mode, bool]] = [("resident", False), ("cpu_offload", False), ("group_offload", False)]
    packed: list[tuple[Mode, bool]] = [(mode, True) for mode, _ in plain]
    if fp8 is None:
        # float8 costs a few per cent of speed, moving whole models costs seconds per job.
        return [plain[0], packed[0], plain[1], packed[1], plain[2]]
    return packed if fp8 else plain


#: Parts of which nothing stays in memory: a folder of settings, and a LoRA that is merged into the denoiser.
_NOT_KEPT = {"config", "lcm_lora"}


def weigh(checkpoint: Checkpoint, dtype: str) -> Weights:
    """Return what a checkpoint will take in memory, from the headers of its files.

    Its VAE is counted as float32, which some families keep it in; others take less.

    Args:
        dtype: of the other components: "float32", "bfloat16" or "float16".

    Raises:
        CheckpointUnavailable: a file is missing or damaged.
    """
    sizes: dict[str, int] = {}
    packed: dict[str, int] = {}
    largest = 0
    for component, name, file_dtype, shape in _tensors_of(checkpoint):
        wide = 4 if component == "vae" else _BYTES[dtype]
        elements = prod(shape)
        size = elements * _FILE_BYTES.get(file_dtype, wide) if file_dtype[0] in "IUB" else elements * wide
        is_packed = component in DENOISERS and len(shape) > 1 and not any(part in name for part in _NOT_FP8)
        sizes[component] = sizes.get(component, 0) + size
        packed[component] = packed.get(component, 0) + (elements if is_packed else size)
        largest = max(largest, size)
    return Weights(sizes, packed, largest)


def _tensors_of(checkpoint: Checkpoint) -> Iterator[tuple[str, str, str, list[int]]]:
    """Yield component, name, dtype and shape of every tensor of a checkpoint."""
    if checkpoint.path.is_file():
        for tensor in _tensors(checkpoint.path):
            for prefix, component in _SINGLE_FILE.items():
                if tensor[0].startswith(prefix):
                    yield (component, *tensor)
    elif (checkpoint.path / "model_index.json").is_file():
        for component, (_, class_name) in _loaded_components(checkpoint.path).items():
            if has_weights(class_name):
                for file in weight_files(checkpoint.path / component):
                    yield from ((component, *tensor) for tensor in _tensors(file))
    for role, path in checkpoint.parts.items():
        if role in _NOT_KEPT:
            continue
        # diffusers builds one network of the U-Net and the motion adapter.
        component = "unet" if role == "motion_adapter" else role
        for file in [path] if path.is_file() else _files_below(path):
            yield from ((component, *tensor) for tensor in _tensors(file))


def _loaded_components(folder: Path) -> dict[str, tuple[str, str]]:
    """Return the components of a folder less those whose weights are never in memory."""
    present = components(folder)
    unused = {"safety_checker"}
    if present.get("unet", ("", ""))[1] == "UNetMotionModel":
        unused.add("motion_adapter")  # its weights are in the U-Net's files as well
    return {name: what for name, what in present.items() if name not in unused}


def _files_below(folder: Path) -> list[Path]:
    own = weight_files(folder)
    return own or [file for inner in sorted(folder.iterdir()) if inner.is_dir() for file in weight_files(inner)]


def _tensors(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield name, dtype and shape from the header of a safetensors file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, about in header.items():
            if name != "__metadata__":
                yield name, about["dtype"], about["shape"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, OverflowError) as err:
        raise CheckpointUnavailable(f"{path} is incomplete or damaged ({err}); fetch it again.") from err


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def apply(pipeline: Pipeline, placement: Placement, *, device: str, dtype: str) -> Placement:
    """Bring a pipeline that was just loaded on the CPU to where it runs.

    The hooks of the offload modes belong to this pipeline from then on: components that another pipeline owns too
    must not be among its own.

    Args:
        placement: "auto" means resident.
        device: "cpu", "cuda" or "cuda:N". Every mode runs on "cpu" as well, where nothing moves.
        dtype: what the denoisers compute in.

    Returns:
        What was done: no "auto", no None.

    Raises:
        CheckpointUnavailable: the pipeline cannot do what the placement asks for.
    """
    import torch

    mode: Mode = "resident" if placement.mode == "auto" else placement.mode
    if placement.fp8:
        for denoiser in denoisers(pipeline):
            denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=getattr(torch, dtype))
    for is_on, name in ((placement.vae_tiling, "tiling"), (placement.vae_slicing, "slicing")):
        if is_on:
            switch = getattr(getattr(pipeline, "vae", None), f"enable_{name}", None)
            if switch is None:
                raise CheckpointUnavailable(f"placement.vae_{name}: the VAE of this model cannot do it.")
            switch()
    _MODES[mode](pipeline, device)
    return placement.model_copy(update={"mode": mode, "fp8": bool(placement.fp8)})


def _resident(pipeline: Pipeline, device: str) -> None:
    pipeline.to(device)


def _cpu_offload(pipeline: Pipeline, device: str) -> None:
    pipeline.enable_model_cpu_offload(device=device)


def _group_offload(pipeline: Pipeline, device: str) -> None:
    import torch
    from diffusers.hooks import apply_group_offloading

    onload, offload = torch.device(device), torch.device("cpu")
    modules = [module for module in pipeline.components.values() if isinstance(module, torch.nn.Module)]
    own = denoisers(pipeline)
    for module in modules:
        # Fetching ahead on a stream pays where the same layers run at every step. It learns their order in the first
        # `forward`, and never ends learning in a VAE, of which only `encode` and `decode` are called: the list of
        # layers would grow with every job.
        ahead = onload.type == "cuda" and any(module is denoiser for denoiser in own)
        apply = getattr(module, "enable_group_offload", None)
        settings = {
            "onload_device": onload,
            "offload_device": offload,
            "offload_type": "leaf_level",
            "use_stream": ahead,
            "record_stream": ahead,
        }
        if apply is not None:
            apply(**settings)
        else:
            apply_group_offloading(module, **settings)


_MODES: dict[Mode, Callable[[Pipeline, str], None]] = {
    "resident": _resident,
    "cpu_offload": _cpu_offload,
    "group_offload": _group_offload,
}


def denoisers(pipeline: Pipeline) -> list[Any]:
    """Return the modules that denoise: one, or two for Wan 2.2 A14B."""
    found = [getattr(pipeline, name, None) for name in DENOISERS]
    return [module for module in found if module is not None]


def weights_bytes(pipeline: Pipeline) -> int:
    """Return the bytes of all weights of a pipeline as they are in memory, wherever they are."""
    total = 0
    for module in getattr(pipeline, "components", {}).values():
        if hasattr(module, "parameters"):
            tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
            total += sum(tensor.nbytes for tensor in tensors.values())
    return total
