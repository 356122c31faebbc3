"""Has a checkpoint that is broken."""

from __future__ import annotations

from pathlib import Path

from models import Pipeline
from polyreel.errors import CheckpointUnavailable
from tests.families.quick import Quick


class Unloadable(Quick):
    """A family that never loads."""

    name = "unloadable"

    def check(self, checkpoint: Path) -> None:
        raise CheckpointUnavailable("The checkpoint has no model_index.json.")

    def load(self, checkpoint: Path, *, device: str, dtype: str) -> Pipeline:
        raise CheckpointUnavailable("The checkpoint has no model_index.json.")
