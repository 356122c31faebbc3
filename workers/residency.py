"""Which pipelines are loaded: as many as allowed, the least recently used goes first."""

from __future__ import annotations

import gc
from collections import OrderedDict
from pathlib import Path

import structlog

from models import Checkpoint, Family, families
from models.checkpoints import locate, locate_file
from models.loaded import LoadedModel
from polyreel.catalogue import Catalogue
from polyreel.errors import ConfigurationError, did_you_mean

log = structlog.get_logger()


class Residency:
    """Loads pipelines on demand and keeps them.

    Args:
        catalogue: what is served.
        checkpoints: folder for checkpoints that are built on this machine.
        device: torch device, or "auto".
        capacity: pipelines that stay loaded, 1 or more.

    Raises:
        ConfigurationError: an entry names a family that does not exist.
    """

    def __init__(self, catalogue: Catalogue, checkpoints: Path, device: str, capacity: int) -> None:
        self.catalogue = catalogue
        self.checkpoints = checkpoints
        self.capacity = capacity
        self._device = device
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        for name, entry in catalogue.models.items():
            if entry.family not in families():
                raise ConfigurationError(
                    f"models.{name}.family: {entry.family!r} is not a family.{did_you_mean(entry.family, families())} "
                    f"Families: {', '.join(families())}."
                )

    @property
    def device(self) -> str:
        """The torch device, "auto" resolved."""
        if self._device == "auto":
            import torch

            self._device = "cuda" if torch.cuda.is_available() else "cpu"
        return self._device

    @property
    def loaded(self) -> list[str]:
        """Catalogue names of the loaded pipelines, the most recently used last."""
        return list(self._loaded)

    def family(self, model: str) -> Family:
        """Return the family that runs a catalogue entry."""
        return families()[self.catalogue[model].family]

    def prepare(self) -> dict[str, str]:
        """Make or find every entry's checkpoint folder and look at it, without loading any.

        Returns:
            Catalogue name to "" if it is there, else to what is wrong with it.
        """
        state = {}
        for name, entry in self.catalogue.models.items():
            try:
                can = self.family(name).check(self._checkpoint(name))
                missing = [task for task in entry.tasks if task not in can]
                state[name] = f"tasks: this checkpoint cannot do {', '.join(missing)}." if missing else ""
            except Exception as err:  # one broken model must not keep the others from being served
                state[name] = str(err)
                log.warning("model unavailable", model=name, reason=str(err))
        return state

    def _checkpoint(self, name: str) -> Checkpoint:
        """Return what an entry's family is to load.

        Raises:
            CheckpointUnavailable: a part of it is not on this machine.
        """
        entry = self.catalogue[name]
        parts = {
            role: locate_file(f"{part.checkpoint}/{part.file}", part.revision, self.checkpoints)
            if part.file
            else locate(part.checkpoint, part.revision, self.checkpoints)
            for role, part in entry.parts.items()
        }
        return Checkpoint(
            path=locate(entry.checkpoint, entry.revision, self.checkpoints),
            name=entry.checkpoint,
            revision=entry.revision or "",
            parts=parts,
            scheduler=entry.scheduler,
            attention=entry.attention,
            step_cache=entry.step_cache,
            audio=entry.audio,
        )

    def get(self, model: str) -> LoadedModel:
        """Return a catalogue entry in memory, loading it if necessary.

        Raises:
            CheckpointUnavailable: the checkpoint is missing or broken.
        """
        if model not in self._loaded:
            while len(self._loaded) >= self.capacity:
                self._unload_oldest()
            entry = self.catalogue[model]
            self._loaded[model] = self.family(model).load(
                self._checkpoint(model), device=self.device, dtype=entry.dtype, placement=entry.placement
            )
        self._loaded.move_to_end(model)
        return self._loaded[model]

    def _unload_oldest(self) -> None:
        name, model = self._loaded.popitem(last=False)
        del model
        log.info("model unloaded", model=name)
        free_memory()


def free_memory() -> None:
    """Give back what no pipeline holds any more."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
