"""Tiny checkpoints, built where they are needed: no download, no GPU, the same bytes on every machine.

Real diffusers pipelines, a few hundred thousand random weights each. Every layout keeps what the real checkpoint is
like from outside: classes, compression of the VAE, patch size, channel layout, scheduler and its settings. So its
sizes and frame counts obey the real rules and the production code loads and runs it. Only widths and depths are tiny.
The pictures are abstract, and follow prompt and seed.

`build("ltx", root)` gives a folder that loads like any other checkpoint, `build("lora-ltx", root)` a LoRA file for it.
Each is made once, under a lock, under a temporary name that is changed when it is complete, so that any number of
processes may ask at the same time and a killed one leaves nothing that looks finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from models import Pipeline
from models._load import quiet_libraries
from models.tiny import animatediff, ltx, sd15_file, wan
from models.tiny._parts import Module
from models.tiny.adapters import ADAPTERS
from polyreel.errors import CheckpointUnavailable, did_you_mean


@dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint: the family that runs it, and the function that makes its pipeline."""

    family: str
    make: Callable[[], Pipeline]


#: Name in a catalogue entry ("tiny:ltx") -> what it is.
TINY: dict[str, Tiny] = {
    name: Tiny(family, make)
    for family, layouts in (("wan", wan.LAYOUTS), ("ltx", ltx.LAYOUTS), ("animatediff", animatediff.LAYOUTS))
    for name, make in layouts.items()
}

#: The same for models that a checkpoint uses beside its own, such as an upsampler: folders of one model.
PARTS: dict[str, Callable[[], Module]] = {**ltx.PARTS, **animatediff.PARTS}

#: And for what is one file of tensors: adapters, and a checkpoint as people own it.
FILES = {**ADAPTERS, **sd15_file.FILES}


@cache
def layout_version() -> str:
    """Return 8 hex digits that change whenever what is built changes: a digest of the recipe itself.

    Part of the folder's name, so that a new release builds anew beside a folder that an older one may be using.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*")):
        if source.suffix in (".py", ".json"):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:8]


def build(name: str, root: Path) -> Path:
    """Return a tiny checkpoint, part or file below `root`, making it if it is not there yet.

    Args:
        name: a key of `TINY`, `PARTS` or `FILES`.
        root: folder for the tiny checkpoints; made if missing. Takes about 3 MB per checkpoint.

    Returns:
        `root/NAME-VERSION`, a complete folder in diffusers layout; `root/NAME-VERSION.safetensors` for a file.

    Raises:
        CheckpointUnavailable: there is no tiny checkpoint of this name, or `root` cannot be written.
    """
    known = [*TINY, *PARTS, *FILES]
    if name not in known:
        raise CheckpointUnavailable(
            f"There is no tiny checkpoint {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
        )
    path = root / f"{name}-{layout_version()}{'.safetensors' if name in FILES else ''}"
    if path.exists():
        return path
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when the holder dies
            if not path.exists():
                _build(name, path)
    except OSError as err:
        raise CheckpointUnavailable(f"The tiny checkpoint {name} cannot be written to {root}: {err}.") from err
    return path


def _build(name: str, path: Path) -> None:
    """Make the checkpoint, part or file; the caller holds the lock of `path`."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    quiet_libraries()
    if name in FILES:
        from safetensors.torch import save_file

        save_file(FILES[name](), unfinished, metadata={"format": "pt"})
    else:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a builder that was killed
        make = PARTS[name] if name in PARTS else TINY[name].make
        make().save_pretrained(unfinished, safe_serialization=True)
    unfinished.rename(path)
