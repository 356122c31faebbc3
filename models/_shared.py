"""Components that several checkpoints hold in common, loaded once: one UMT5 text encoder serves all Wan models.

Two components are the same when their weights are the same bytes, not when their names agree. Nothing here keeps a
component alive: it goes with the last model that uses it.
"""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models import Pipeline
from models._folder import components, has_weights, weight_files

#: What a config says about its origin and not about the component.
_ABOUT_ORIGIN = ("_name_or_path", "transformers_version", "_diffusers_version", "dtype", "torch_dtype")


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    changed_ns: int


@dataclass(frozen=True)
class _Kind:
    """What must be equal before files are compared."""

    name: str
    library: str
    class_name: str
    dtype: str
    device: str
    config: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class _Held:
    kind: _Kind
    files: tuple[_File, ...]
    component: weakref.ref[Any]  # Any: a torch module or a tokenizer


_held: list[_Held] = []


def find(checkpoint: Path, names: Iterable[str], *, dtype: str, device: str) -> dict[str, Any]:
    """Return those components of a checkpoint folder that are in memory already, by name.

    Files of the hub's cache are compared by their names there, which are their digests. Others are hashed, once per
    file, and only when a component of the same class, config and file sizes is in memory.

    Args:
        names: components that may be shared; those that the folder has not are passed over.
        dtype, device: they must have been loaded for these.
    """
    found = {}
    for name in names:
        seen = _look(checkpoint, name, dtype=dtype, device=device)
        for held in _alive():
            if seen is not None and held.kind == seen.kind and _same(held.files, seen.files):
                found[name] = held.component()
    return found


def remember(pipeline: Pipeline, checkpoint: Path, names: Iterable[str], *, dtype: str, device: str) -> None:
    """Offer components of a loaded pipeline to the ones that are loaded after it.

    They must be placed for good: a component whose hooks move it about belongs to one pipeline alone.
    """
    known = [held.component() for held in _alive()]
    for name in names:
        component = getattr(pipeline, name, None)
        seen = _look(checkpoint, name, dtype=dtype, device=device)
        if component is not None and seen is not None and not any(component is other for other in known):
            _held.append(_Held(seen.kind, seen.files, weakref.ref(component)))


def in_memory(checkpoint: Path, *, dtype: str, device: str) -> frozenset[str]:
    """Return the names of the components that loading a folder would not load again."""
    names = {held.kind.name for held in _alive()}
    return frozenset(find(checkpoint, names, dtype=dtype, device=device)) if names else frozenset()


def _alive() -> list[_Held]:
    _held[:] = [held for held in _held if held.component() is not None]
    return _held


@dataclass(frozen=True)
class _Seen:
    kind: _Kind
    files: tuple[_File, ...]


def _look(checkpoint: Path, name: str, *, dtype: str, device: str) -> _Seen | None:
    """Describe a component on disk, None when it is not there."""
    if not checkpoint.is_dir() or name not in (present := components(checkpoint)):
        return None
    library, class_name = present[name]
    folder = checkpoint / name
    if has_weights(class_name):
        paths, config = weight_files(folder), folder / "config.json"
    else:
        paths, config = sorted(path for path in folder.iterdir() if path.is_file()), folder / "none"
        dtype = device = ""
    try:
        files = tuple(_File(path, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths)
        content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (OSError, ValueError):
        return None  # loading it says what is wrong
    about = json.dumps({key: content[key] for key in sorted(content) if key not in _ABOUT_ORIGIN})
    return _Seen(_Kind(name, library, class_name, dtype, device, about, tuple(file.size for file in files)), files)


def _same(held: tuple[_File, ...], seen: tuple[_File, ...]) -> bool:
    return all(_digest(a) == _digest(b) for a, b in zip(held, seen, strict=True)) and all(map(_unchanged, held))


def _unchanged(file: _File) -> bool:
    """Return whether a file still is the one that was loaded."""
    try:
        stat = file.path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (file.size, file.changed_ns)


def digest(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal; read once, and again when its size or time of change differs.

    Raises:
        OSError: it cannot be read.
    """
    stat = path.stat()
    return _digest(_File(path, stat.st_size, stat.st_mtime_ns))


@cache
def _digest(file: _File) -> str:
    blob = file.path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
        return blob.name  # the hub's cache names large files by their sha256
    with file.path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
