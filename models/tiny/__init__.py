"""Tiny checkpoints, built where they are needed: no download, no GPU, the same bytes on every machine.

Real diffusers pipelines, a few hundred thousand random weights each. Every layout keeps what the real checkpoint is
like from outside: classes, compression of the VAE, patch size, channel layout, scheduler and its settings. So its
sizes and frame counts obey the real rules and the production code loads and runs it. Only widths and depths are tiny.
The pictures are abstract, and follow prompt and seed.

`build("ltx", root)` gives a folder that loads like any other checkpoint. It is made once, under a lock, in a
temporary folder that is renamed into place, so that any number of processes may ask at the same time and a killed
one leaves nothing that looks finished.
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
from models.tiny import animatediff, ltx, wan
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
    """Return the folder of a tiny checkpoint below `root`, making it if it is not there yet.

    Args:
        name: a key of `TINY`.
        root: folder for the tiny checkpoints; made if missing. Takes about 3 MB per checkpoint.

    Returns:
        `root/NAME-VERSION`, in diffusers layout, complete.

    Raises:
        CheckpointUnavailable: there is no tiny checkpoint of this name, or `root` cannot be written.
    """
    if name not in TINY:
        raise CheckpointUnavailable(
            f"There is no tiny checkpoint {name!r}.{did_you_mean(name, TINY)} Known: {', '.join(TINY)}."
        )
    folder = root / f"{name}-{layout_version()}"
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when the holder dies
            if not folder.is_dir():
                _build(name, folder)
    except OSError as err:
        raise CheckpointUnavailable(f"The tiny checkpoint {name} cannot be written to {root}: {err}.") from err
    return folder


def _build(name: str, folder: Path) -> None:
    """Make the checkpoint; the caller holds the lock of `folder`."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a builder that was killed
    quiet_libraries()
    TINY[name].make().save_pretrained(unfinished, safe_serialization=True)
    unfinished.rename(folder)
