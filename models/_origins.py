"""What weights came from, told without a path of this machine: a repository and commit, or a name and a fingerprint.

Receipts go into files that strangers get, and the folders of whoever runs a server are not their business.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from models._shared import digest

_DIGITS = 16  # of a sha256 in hexadecimal; enough to tell files apart

#: How much of each end of a file counts for a fingerprint. Safetensors have names and shapes first, weights last.
_END_BYTES = 65_536


def hub_origin(path: Path) -> tuple[str, str] | None:
    """Return the repository ("OWNER/NAME", and what is inside it) and commit of a path in the hub's cache, else None.

    Example: ".../models--wang--hands/snapshots/0a1b…/bad.safetensors" is ("wang/hands/bad.safetensors", "0a1b…").
    """
    parts = path.parts
    for at in range(len(parts) - 2):
        if parts[at].startswith("models--") and parts[at + 1] == "snapshots":
            repository = parts[at].removeprefix("models--").replace("--", "/")
            return "/".join((repository, *parts[at + 3 :])), parts[at + 2]
    return None


def checkpoint_origin(path: Path, name: str) -> dict[str, str]:
    """Return what a receipt says of a checkpoint or a part of one.

    Args:
        path: where it is.
        name: as the catalogue calls it.

    Returns:
        "checkpoint" and "revision", the commit of a repository. What the operator keeps has the name of its file or
        folder, "" for a commit, and a "fingerprint". What Polyreel builds itself has neither: its name says it all.
    """
    hub = hub_origin(path)
    if hub is not None:
        return {"checkpoint": hub[0], "revision": hub[1]}
    if name.startswith("tiny:"):
        return {"checkpoint": name, "revision": ""}
    shown = name if name.startswith("shipped:") else path.absolute().name
    return {"checkpoint": shown, "revision": "", "fingerprint": fingerprint(path)}


def adapter_origin(path: Path) -> dict[str, str]:
    """Return what a receipt says of a LoRA's or embedding's file: "sha256" (16 digits), and "revision" on the hub."""
    hub = hub_origin(path)
    try:
        sha256 = digest(path)[:_DIGITS]
    except OSError:  # taken away since it was loaded; the video is made, and this is not worth its loss
        sha256 = ""
    return {"sha256": sha256, **({"revision": hub[1]} if hub else {})}


def fingerprint(path: Path) -> str:
    """Return 16 hexadecimal digits that change when a checkpoint's weights or settings do; "" when it is not there.

    Of every .safetensors and .json file its name, its size and its two ends count: hashing tens of gigabytes at every
    load would take a minute.

    Args:
        path: a folder or a file.
    """
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in (".safetensors", ".json"))
    total = hashlib.sha256()
    try:
        for file in files:
            with file.open("rb") as opened:
                size = file.stat().st_size
                inside = file.relative_to(path).as_posix()
                total.update(f"{inside}\0{size}\0".encode() + opened.read(_END_BYTES))
                opened.seek(max(0, size - _END_BYTES))
                total.update(opened.read(_END_BYTES))
    except OSError:
        return ""
    return total.hexdigest()[:_DIGITS] if files else ""
