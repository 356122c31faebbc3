"""Published checkpoints without their weights: every component built from its configuration, on any device.

`published/NAME.json` holds the facts of one entry of `configs/gpu.yaml`: layer counts, widths, channels, scheduler
settings. On the `meta` device a model of 14 billion parameters takes no memory and a second or two.
"""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from models import Checkpoint
from polyreel.entries import ServedModel

_FOLDER = Path(__file__).parent / "published"

#: Names of the catalogue entries whose configurations are kept.
PUBLISHED = sorted(file.stem for file in _FOLDER.glob("*.json"))

#: Components that stay in float32 whatever an entry's dtype says; the families say the same.
FLOAT32 = {"WanPipeline": {"vae"}, "WanImageToVideoPipeline": {"vae"}}


@dataclass(frozen=True)
class Published:
    """What one file says.

    Args:
        checkpoint: as in the catalogue.
        pipeline: name of the diffusers class.
        settings: of the pipeline itself, such as `boundary_ratio`.
        components, parts: configurations by component name or role, each with its `_class`.
    """

    checkpoint: str
    source: str
    pipeline: str
    settings: dict[str, Any]
    components: dict[str, dict[str, Any]]
    parts: dict[str, dict[str, Any]]


@cache
def published(name: str) -> Published:
    """Read the facts of an entry."""
    values = json.loads((_FOLDER / f"{name}.json").read_text())
    return Published(**{"parts": {}, **values})


def build(config: dict[str, Any]) -> Any:
    """Make one component from its configuration, with random weights on torch's default device."""
    path = config["_class"]
    values = {key: value for key, value in config.items() if key != "_class"}
    module, _, class_name = path.rpartition(".")
    component_class = getattr(importlib.import_module(module), class_name)
    if module == "transformers":
        # Without its own initialisation, which would touch every weight.
        with _uninitialised():
            model = component_class(component_class.config_class(**values)).eval()
        model.tie_weights()  # part of what was left out: an encoder's embedding is one tensor under two names
        return model
    made = component_class(**values)
    return made.eval() if hasattr(made, "eval") else made


@contextmanager
def _uninitialised() -> Iterator[None]:
    from transformers import initialization as init

    with init.no_init_weights():
        yield


def components(name: str, device: str = "meta") -> dict[str, Any]:
    """Build every component and part of an entry by its name or role."""
    import torch

    facts = published(name)
    everything = {**facts.components, **facts.parts}
    made = {}
    for role, config in everything.items():
        # A scheduler computes its table at once, which the meta device cannot.
        with torch.device("cpu" if role == "scheduler" else device):
            made[role] = build(config)
    return made


def pipeline(name: str, made: dict[str, Any]) -> Any:
    """Put the pipeline of an entry together; tokenizers and processors, which hold no weights, are left out."""
    import diffusers

    facts = published(name)
    pipeline_class = getattr(diffusers, facts.pipeline)
    if "motion_adapter" in made:
        # What the pipeline does by itself, less the copying of weights that are not there.
        with made["unet"].device:
            unet = diffusers.UNetMotionModel.from_unet2d(made["unet"], made["motion_adapter"], load_weights=False)
        made = {**made, "unet": unet.eval()}
    expected, optional = pipeline_class._get_signature_keys(pipeline_class)
    given = {role: component for role, component in made.items() if role in expected}
    settings = {key: value for key, value in facts.settings.items() if key in optional}
    return pipeline_class(**{**dict.fromkeys(expected), **given, **settings})


def write_checkpoint(name: str, made: dict[str, Any], folder: Path, entry: ServedModel) -> Checkpoint:
    """Write an entry as it would lie on the disk: indexes, configurations, and weights of the right names and sizes.

    The weights are holes: files of their full length that take no room. Tokenizers and processors are left out.

    Args:
        made: from `components`.
        folder: made if missing.
        entry: of the catalogue; what it says of parts and the scheduler goes into the result.
    """
    facts = published(name)
    path = folder / Path(facts.checkpoint).name
    if path.suffix == ".safetensors":
        folder.mkdir(parents=True, exist_ok=True)
        _write_single_file(path, made)
    else:
        index: dict[str, Any] = {"_class_name": index_class(facts), **facts.settings}
        for role, config in facts.components.items():
            index[role] = _library_and_class(config)
            _write_component(path / role, config, made[role])
        (path / "model_index.json").write_text(json.dumps(index))
    parts = {}
    for role, config in facts.parts.items():
        parts[role] = folder / role
        _write_component(parts[role], config, made[role])
    if "lcm_lora" in entry.parts:
        parts["lcm_lora"] = folder / "lcm_lora.safetensors"
        _write_tensors(parts["lcm_lora"], {"unet.conv_in.lora_A.weight": (1, 4, 3, 3)})
    return Checkpoint(path=path, name=entry.checkpoint, parts=parts, scheduler=entry.scheduler)


def index_class(facts: Published) -> str:
    """Return the pipeline class that a repository's `model_index.json` names: of images where a part makes videos."""
    return "StableDiffusionPipeline" if "motion_adapter" in facts.parts else facts.pipeline


def _library_and_class(config: dict[str, Any]) -> list[str]:
    module, _, class_name = config["_class"].rpartition(".")
    # Components that live beside a pipeline are named after its package, as in "diffusers.pipelines.ltx2".
    return [module.split(".")[2] if module.startswith("diffusers.pipelines.") else module, class_name]


def _write_component(folder: Path, config: dict[str, Any], component: Any) -> None:
    folder.mkdir(parents=True)
    library, class_name = _library_and_class(config)
    values = {key: value for key, value in config.items() if key != "_class"}
    if class_name.endswith("Scheduler"):
        (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": class_name, **values}))
        return
    (folder / "config.json").write_text(json.dumps({"_class_name": class_name, **values}))
    file = "model.safetensors" if library == "transformers" else "diffusion_pytorch_model.safetensors"
    _write_tensors(folder / file, shapes(component))


def shapes(component: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a module that a file of it holds; one under two names counts once."""
    by_tensor = {
        id(tensor): (name, tuple(tensor.shape)) for name, tensor in component.state_dict(keep_vars=True).items()
    }
    return dict(by_tensor.values())


#: Tensors of a single file that are looked at by name, and what diffusers calls them.
_SINGLE_FILE_NAMES = {
    "unet.conv_in.weight": "model.diffusion_model.input_blocks.0.0.weight",
    "vae.encoder.conv_in.weight": "first_stage_model.encoder.conv_in.weight",
    "vae.decoder.conv_in.weight": "first_stage_model.decoder.conv_in.weight",
}
_SINGLE_FILE_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.text_model.",
}


def _write_single_file(path: Path, made: dict[str, Any]) -> None:
    """Write the sizes of a file in the original layout; only tensors that are looked at have its names."""
    _write_tensors(
        path,
        {
            _SINGLE_FILE_NAMES.get(f"{role}.{name}", prefix + name.removeprefix("text_model.")): shape
            for role, prefix in _SINGLE_FILE_PREFIXES.items()
            for name, shape in shapes(made[role]).items()
        },
    )


def _write_tensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of bfloat16 whose data is a hole."""
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
