"""Has a checkpoint that is broken."""

from __future__ import annotations

from models import Checkpoint
from models.loaded import LoadedModel
from polyreel.entries import Placement, Task
from polyreel.errors import CheckpointUnavailable
from tests.families.quick import Quick


class Unloadable(Quick):
    """A family that never loads."""

    name = "unloadable"

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        raise CheckpointUnavailable("The checkpoint has no model_index.json.")

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        raise CheckpointUnavailable("The checkpoint has no model_index.json.")
