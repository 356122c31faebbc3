"""Which pipelines are loaded: as many as allowed and as fit, the least recently used goes first, pinned ones stay."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from models import Checkpoint, Family, _shared, families
from models.checkpoints import checkpoint_of
from models.loaded import LoadedModel
from models.placement import NO_WEIGHTS, choose, weigh
from polyreel.catalogue import Catalogue
from polyreel.entries import Placement
from polyreel.errors import ConfigurationError, OutOfMemory, did_you_mean
from workers.memory import DeviceMemory, device_memory, free_memory, let_go, working_bytes

log = structlog.get_logger()


class Residency:
    """Loads pipelines on demand and keeps them.

    Args:
        catalogue: what is served.
        checkpoints: folder for checkpoints that are built on this machine.
        device: torch device, or "auto".
        capacity: pipelines that stay loaded, 1 or more.
        lora_bytes: of LoRAs that stay loaded beside one pipeline; None for the models' own default.
        device_memory: how much memory there is.

    Attributes:
        pinned: the models that stay loaded; replaced as a whole, never changed, because the heartbeat reads it from its
            thread.
        on_load: called with the name of every model that has been loaded.

    Raises:
        ConfigurationError: an entry names a family that does not exist, or the pinned ones leave no room for others.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        checkpoints: Path,
        device: str,
        capacity: int,
        *,
        lora_bytes: float | None = None,
        device_memory: DeviceMemory = device_memory,
    ) -> None:
        self.catalogue = catalogue
        self.checkpoints = checkpoints
        self.capacity = capacity
        self._device = device
        self._lora_bytes = lora_bytes
        self._device_memory = device_memory
        self._asked: dict[str, Placement | None] = {}  # what `get` was given for each loaded model
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._transient: dict[str, int] = {}  # bytes of the device that a job of a loaded model takes and gives back
        for name, entry in catalogue.models.items():
            if entry.family not in families():
                raise ConfigurationError(
                    f"models.{name}.family: {entry.family!r} is not a family.{did_you_mean(entry.family, families())} "
                    f"Families: {', '.join(families())}."
                )
        self.on_load: Callable[[str], None] = lambda name: None
        self.pinned: frozenset[str] = frozenset()
        self._pin(frozenset(name for name, entry in catalogue.models.items() if entry.pinned))

    @property
    def device(self) -> str:
        """The torch device, "auto" resolved."""
        if self._device == "auto":
            import torch

            self._device = "cuda" if torch.cuda.is_available() else "cpu"
        return self._device

    @property
    def memory_bytes(self) -> int | None:
        """All memory of the device, None when it is not counted."""
        memory = self._device_memory(self.device)
        return memory[1] if memory else None

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
        return checkpoint_of(self.catalogue[name], self.checkpoints)

    def pin(self, model: str) -> None:
        """Let a catalogue entry stay loaded from its next load on.

        Raises:
            ConfigurationError: then no other model could be loaded.
        """
        self._pin(self.pinned | {model})

    def unpin(self, model: str) -> None:
        """Let a catalogue entry go when others must have its place."""
        self.pinned = self.pinned - {model}

    def _pin(self, pinned: frozenset[str]) -> None:
        room = self.capacity if len(pinned) == len(self.catalogue.models) else self.capacity - 1
        if len(pinned) > room:
            names = [name for name in self.catalogue.models if name in pinned]
            raise ConfigurationError(
                f"resident_models: {self.capacity} is too few for the pinned models {', '.join(names)}"
                f"{' and one more' if room < self.capacity else ''}; "
                f"set it to {len(pinned) + self.capacity - room} or pin fewer."
            )
        self.pinned = pinned

    def load_pinned(self) -> dict[str, str]:
        """Load the entries that stay loaded.

        Returns:
            Catalogue name to the reason, for those that did not load.
        """
        failed = {}
        for name in self.catalogue.models:
            if name in self.pinned:
                try:
                    self.get(name)
                except Exception as err:  # as in `prepare`
                    failed[name] = str(err)
                    log.warning("model unavailable", model=name, reason=str(err))
        return failed

    def loaded_with(self, model: str) -> Placement | None:
        """Return the placement that `get` was given when it loaded a model, None for its usual one."""
        return self._asked.get(model)

    def get(self, model: str, placement: Placement | None = None) -> LoadedModel:
        """Return a catalogue entry in memory, loading it if necessary.

        Args:
            placement: instead of the entry's own; a model that is loaded with another one is loaded anew, so nobody
                else may hold it.

        Raises:
            CheckpointUnavailable: the checkpoint is missing or broken.
            OutOfMemory: it does not fit, even with everything unloaded that may go.
        """
        if model in self._loaded and self._asked[model] != placement:
            self.unload(model)
        if model not in self._loaded:
            self._loaded[model] = self._load(model, placement or self.catalogue[model].placement)
            self._asked[model] = placement
        self._loaded.move_to_end(model)
        return self._loaded[model]

    def unload(self, model: str) -> None:
        """Drop a pipeline, pinned or not; the next `get` loads it anew. Nobody else may hold it."""
        dropped = self._loaded.pop(model, None)
        self._transient.pop(model, None)
        self._asked.pop(model, None)
        if dropped is None:
            return
        since, size = time.monotonic(), dropped.weights_bytes
        del dropped
        free_memory()
        log.info("model unloaded", model=model, seconds=round(time.monotonic() - since, 3), bytes=size)

    def _load(self, name: str, placement: Placement) -> LoadedModel:
        checkpoint = self._checkpoint(name)
        while len(self._loaded) >= self.capacity:
            self.unload(self._evictable()[0])  # there is one: see __init__
        placement, transient = self._make_room(name, checkpoint, placement)
        since = time.monotonic()
        model = self._load_as(name, checkpoint, placement)
        while model is None:  # the estimate was too low
            self.unload(self._evictable()[0])
            model = self._load_as(name, checkpoint, placement)
        if self._lora_bytes is not None:
            model.adapters.budget_bytes = self._lora_bytes
        self._transient[name] = transient
        self.on_load(name)
        log.info(
            "model loaded",
            model=name,
            seconds=round(time.monotonic() - since, 3),
            bytes=model.weights_bytes,
            placement=model.placement.mode,
            fp8=bool(model.placement.fp8),
        )
        return model

    def _load_as(self, name: str, checkpoint: Checkpoint, placement: Placement) -> LoadedModel | None:
        """Load a checkpoint; return None when memory ran out and something may still go."""
        entry = self.catalogue[name]
        try:
            return self.family(name).load(checkpoint, device=self.device, dtype=entry.dtype, placement=placement)
        except OutOfMemory as err:
            let_go(err)
            if not self._evictable():
                free_memory()
                raise
        free_memory()  # outside of the handler: until then the error keeps the half-loaded pipeline alive
        return None

    def _make_room(self, name: str, checkpoint: Checkpoint, wanted: Placement) -> tuple[Placement, int]:
        """Unload what must go for a model.

        Returns:
            Where its weights are to live, and what a job of it takes of the device beside weights that stay there.
        """
        if (free := self._free()) is None:
            return choose(wanted, NO_WEIGHTS, working_bytes=0, free_bytes=None, device=self.device), 0
        entry = self.catalogue[name]
        weights, own = weigh(checkpoint, entry.dtype), working_bytes(entry)

        def decide(free: int) -> tuple[Placement, int, int]:
            """Return the placement for so much memory, what it needs in all, and how much of that is transient."""
            shared = _shared.in_memory(checkpoint.path, dtype=entry.dtype, device=self.device)
            # Jobs of the models that stay must have room beside this one's weights as well.
            working = max([own, *self._transient.values()])
            chosen = choose(wanted, weights, working_bytes=working, free_bytes=free, device=self.device, shared=shared)
            needs = partial(weights.needed_bytes, chosen.mode, fp8=bool(chosen.fp8))
            transient = own if chosen.mode == "resident" else needs(working_bytes=own)
            return chosen, needs(working_bytes=working, shared=shared), transient

        while True:
            # What could be had decides: unloading more than the best placement needs would help nobody.
            could_be_free = free + sum(map(self._device_bytes, self._evictable()))
            try:
                placement, needed, transient = decide(could_be_free)
            except OutOfMemory as err:
                raise OutOfMemory(f"{name}: {err.message}{self._because_pinned()}", "load") from None
            if needed <= free or not self._evictable():
                break
            self.unload(self._evictable()[0])
            free = self._free() or 0
        if needed > free and self._loaded:
            raise OutOfMemory(
                f"{name} needs {needed / 1e9:.1f} GB ({placement.mode}), and {self.device} has {free / 1e9:.1f} GB "
                f"free.{self._because_pinned()}",
                "load",
            )
        return placement, transient  # the entry's own mode is tried even where the estimate says no

    def _free(self) -> int | None:
        memory = self._device_memory(self.device)
        return memory[0] if memory else None

    def _because_pinned(self) -> str:
        names = [name for name in self._loaded if name in self.pinned]
        return f" Pinned models stay loaded: {', '.join(names)}; pin fewer." if names else ""

    def _device_bytes(self, name: str) -> int:
        """Return the bytes of the device that unloading a model gives back."""
        model = self._loaded[name]
        return model.weights_bytes if model.placement.mode == "resident" else 0

    def _evictable(self) -> list[str]:
        """Return the loaded models that may go, the least recently used first."""
        return [name for name in self._loaded if name not in self.pinned]
