"""Published checkpoints without their weights: every component built from its configuration, on any device.

`published/NAME.json` holds the facts of one entry of `configs/gpu.yaml`: layer counts, widths, channels, scheduler
settings. On the `meta` device a model of 14 billion parameters takes no memory and a second or two.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
