"""LoRA files before they are loaded: which one it is, and whether it may be loaded at all.

Reads headers only. Whether the weights fit a model is found out when they are loaded into it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from models import AdapterFile
from polyreel.errors import AdapterUnavailable

#: Where peft's settings are in a file that diffusers or peft has written.
_SETTINGS = "lora_adapter_metadata"

#: Settings under which loading would change more than the layers beside the model's own, and the values that do not.
#: PiSSA, OLoRA and their like rewrite the model's own weights, and nothing would put them back.
_HARMLESS: dict[str, tuple[object, ...]] = {
    "init_lora_weights": (True, False, None, "gaussian"),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "megatron_config": (None,),
}


class Stamp(NamedTuple):
    """A file as it was when we looked: a replaced one differs in its length, its time or its place on the disk."""

    path: str
    inode: int
    size: int
    changed_ns: int


#: The files of a LoRA. Two catalogue names for the same files are one LoRA.
Identity = tuple[Stamp, ...]


def identify(lora: AdapterFile) -> Identity:
    """Return which files a LoRA is at this moment.

    Raises:
        AdapterUnavailable: one of them is missing.
    """
    return tuple(_stamp(lora.name, path) for path in (lora.path, lora.second) if path)


def size_of(identity: Identity) -> int:
    """Return the length of a LoRA's files together, in bytes."""
    return sum(stamp.size for stamp in identity)


def check_file(name: str, path: Path) -> int:
    """Return how many weight matrices a LoRA file holds.

    Args:
        name: of the LoRA, for messages.

    Raises:
        AdapterUnavailable: it is not whole safetensors, holds no LoRA that diffusers knows, or asks for more than
            layers beside the model's own.
    """
    from safetensors import SafetensorError, safe_open

    # diffusers goes by the ending, and unpickles what does not have this one.
    if path.suffix != ".safetensors":
        raise AdapterUnavailable(f"The LoRA {name} is not a .safetensors file, and no others are loaded; convert it.")
    try:
        with safe_open(path, framework="numpy") as file:  # compares the header with the file's length
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (not a dict)
            settings = _settings(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as err:
        raise AdapterUnavailable(
            f"The LoRA {name} cannot be read: its file is cut short or is not safetensors; fetch it again."
        ) from err
    weights = sum("lora" in key and len(shape) >= 2 for key, shape in shapes.items())
    # diffusers would leave the scales of a DoRA out and run something else than was trained.
    if not weights or any("dora_scale" in key for key in shapes):
        raise AdapterUnavailable(
            f"The LoRA {name} is of a kind that cannot be used here (plain LoRA can; DoRA, LoHa, LoKr, checkpoints "
            "and embeddings cannot); choose another."
        )
    for setting, value in settings:
        if setting in _HARMLESS and value not in _HARMLESS[setting]:
            raise AdapterUnavailable(
                f"The LoRA {name} asks to change the model itself ({setting}); save it as a plain LoRA first."
            )
    return weights


def complaint(error: Exception) -> str:
    """Return what to tell a client whose LoRA did not load; the error's own text may hold paths."""
    from peft import NoMatchingPeftModuleError

    if isinstance(error, NoMatchingPeftModuleError):
        return "was made for another model: it changes layers that this one does not have; choose another."
    if "mismatch" in str(error):
        return "was made for another model: its layers have other sizes than this one's; choose another."
    kind = type(error).__name__
    return f"cannot be loaded ({kind}): its weights are incomplete or in an unknown form; fetch it again."


def _stamp(name: str, path: Path) -> Stamp:
    try:
        found = path.stat()  # of the file behind a link, as in the cache of the hub
    except OSError as err:
        raise AdapterUnavailable(f"The LoRA {name} is missing on this machine; fetch its file again.") from err
    return Stamp(str(path), found.st_ino, found.st_size, found.st_mtime_ns)


def _settings(metadata: dict[str, str]) -> list[tuple[str, object]]:
    """Return peft's settings in a file's metadata, of all components one after the other.

    Raises:
        ValueError: they are not a JSON object.
    """
    settings = json.loads(metadata.get(_SETTINGS, "{}"))
    if not isinstance(settings, dict):
        raise ValueError(f"{_SETTINGS} is no JSON object")
    # Keys are such as "text_encoder.lora_alpha".
    return [(key.rpartition(".")[2], value) for key, value in settings.items()]
