"""Keeps what a training has reached in files, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save(state: Any, path: Path) -> None:
    """Write a state in place of the one before: a kill leaves one of the two."""
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.rename(path)


def load(path: Path, device: Any = "cpu") -> Any:
    """Read a state; it holds tensors and plain values, nothing that runs."""
    return torch.load(path, map_location=device, weights_only=True)
