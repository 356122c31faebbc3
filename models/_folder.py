"""What a checkpoint folder in diffusers layout holds, and whether it may be loaded.

Reads indexes and headers, never weights: a folder is judged in milliseconds, whatever its size.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyreel.errors import CheckpointUnavailable

#: Files that may run code when they are read.
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

#: Names of a component's weights, in the order in which diffusers and transformers look for them. Variants such as
#: model.fp16.safetensors are not among them: they are loaded only when asked for by name.
#: `polyreel pull` fetches by the same list.
WEIGHTS = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
)

#: Ends of class names of components without weights. TokenizersBackend is what transformers 5 calls a tokenizer that
#: belongs to no model.
_WEIGHTLESS = (
    *("Tokenizer", "TokenizerFast", "TokenizersBackend"),
    *("Scheduler", "Processor", "ProcessorFast", "ProcessorPil", "Extractor"),
)


def check_folder(checkpoint: Path, class_names: Collection[str], unused: Collection[str] = ()) -> str:
    """Refuse what would fail, or run code, in the middle of loading.

    Pickles beside safetensors are let be: many repositories hold both, and `use_safetensors=True` never opens them.

    Args:
        checkpoint: in diffusers layout.
        class_names: diffusers pipeline classes that the family runs.
        unused: components that the family never loads, such as "safety_checker"; they need not be there.

    Returns:
        The pipeline class that the folder names, one of `class_names`.

    Raises:
        CheckpointUnavailable: names the file and what to do about it.
    """
    if not checkpoint.is_dir():
        raise CheckpointUnavailable(f"{checkpoint} is not a folder; give a checkpoint folder in diffusers layout.")
    found = _read_index(checkpoint)["_class_name"]
    if found not in class_names:
        raise CheckpointUnavailable(
            f"{checkpoint / 'model_index.json'} says {found}, and this family runs {', '.join(sorted(class_names))}; "
            "choose another family or another checkpoint."
        )
    for name, (library, class_name) in components(checkpoint).items():
        if name not in unused:
            _check_component(checkpoint / name, library, class_name)
    return str(found)


def components(checkpoint: Path) -> dict[str, tuple[str, str]]:
    """Return the components that a folder has, by name: the library and the class of each.

    Raises:
        CheckpointUnavailable: its `model_index.json` is missing or damaged.
    """
    # [library, class]; [null, null] is a component that this checkpoint goes without.
    return {
        name: (value[0], str(value[1]))
        for name, value in _read_index(checkpoint).items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    }


def has_weights(class_name: str) -> bool:
    """Return whether a component of this class has weights: a tokenizer has none."""
    return not class_name.endswith(_WEIGHTLESS)


def weight_files(component: Path) -> list[Path]:
    """Return the safetensors files that are read for a component's folder, none when it has no weights in them.

    Raises:
        CheckpointUnavailable: an index is damaged. Whether the files are there is not looked at.
    """
    for name in WEIGHTS:
        file = component / name
        if file.is_file():
            return _shards(file) if name.endswith(".json") else [file]
    return []


def check_safetensors(path: Path) -> None:
    """Raise `CheckpointUnavailable` when a file is cut short or is not safetensors; reads its header only."""
    from safetensors import SafetensorError, safe_open

    try:
        # Reads the header and compares its offsets with the length of the file, not the weights.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as err:
        raise CheckpointUnavailable(f"{path} is incomplete or damaged ({err}); fetch it again.") from err


def _read_index(checkpoint: Path) -> dict[str, Any]:  # Any: JSON
    index = checkpoint / "model_index.json"
    if not index.is_file():
        raise CheckpointUnavailable(f"{index} is missing; a checkpoint folder in diffusers layout has this file.")
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        found = content["_class_name"]
    except (ValueError, KeyError, TypeError) as err:
        raise CheckpointUnavailable(f"{index} is damaged or names no _class_name; fetch it again.") from err
    if not isinstance(found, str):  # [module, class]
        raise CheckpointUnavailable(
            f"{index} names the custom pipeline {found}, which is code from the checkpoint; only pipelines of "
            "diffusers are run."
        )
    return content


def _check_component(component: Path, library: str, class_name: str) -> None:
    if not component.is_dir():
        raise CheckpointUnavailable(f"{component} is missing; the checkpoint is incomplete, fetch it again.")
    code = sorted(path.name for path in component.glob("*.py"))
    if code or library not in ("diffusers", "transformers", *_pipeline_modules()):
        raise CheckpointUnavailable(
            f"{component} is a custom component ({code[0] if code else library}): code from the checkpoint is never "
            "run, only classes of diffusers and transformers are."
        )
    if not has_weights(class_name):
        return
    files = weight_files(component)
    if not files:
        _refuse_without_weights(component)
    for file in files:
        if not file.is_file():
            raise CheckpointUnavailable(
                f"{file} is missing, and the index of {component.name} names it; the checkpoint is incomplete, "
                "fetch it again."
            )
        check_safetensors(file)


def _refuse_without_weights(component: Path) -> None:
    found = sorted(path.name for path in component.iterdir() if path.suffix.lower() in (*PICKLES, ".safetensors"))
    for name in found:
        if not name.endswith(".safetensors"):
            raise CheckpointUnavailable(
                f"{component / name} is a pickle, which may run code when it is read, and {component.name} has no "
                "safetensors; only those are loaded. Convert it."
            )
    raise CheckpointUnavailable(
        f"{component} has no weights in a file named {WEIGHTS[1]} or {WEIGHTS[2]} (found: "
        f"{', '.join(found) or 'none'}); the checkpoint is incomplete, fetch it again."
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("it names no files of its own folder")
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointUnavailable(f"{index} is damaged ({err}); fetch it again.") from err
    return [index.with_name(name) for name in names]


@cache
def _pipeline_modules() -> frozenset[str]:
    """Return the packages of diffusers that pipelines keep components of their own in, such as "ltx2"."""
    # Looked up as files: importing diffusers takes seconds.
    spec = find_spec("diffusers")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return frozenset(path.name for folder in folders for path in (Path(folder) / "pipelines").iterdir())
