"""The state of schedulers, and the scheduler that a pipeline makes for itself by copying its own."""

from __future__ import annotations

from functools import wraps
from types import FunctionType, MethodType
from typing import Any

from models._around import Scheduler, Tensor
from models._snapshot import Tree


def attributes(scheduler: Scheduler) -> dict[str, Any]:
    """Return all that a scheduler knows but its configuration, and what was put in its methods' place."""
    return {
        name: value
        for name, value in vars(scheduler).items()
        if name != "_internal_dict" and not isinstance(value, FunctionType | MethodType)
    }


class CopiedScheduler:
    """The scheduler that LTX-2's pipelines make for the latents of the sound, by copying the one of the pictures.

    It and those latents are local to the pipeline's call; its `step` is where they can be seen and replaced.

    Attributes:
        scheduler: the copy, None before it was made.
        latents: what its last step returned.
    """

    def __init__(self) -> None:
        self.scheduler: Scheduler = None
        self.latents: Tensor = None
        self._instead: tuple[Tensor, Tree] | None = None

    def of(self, scheduler: Scheduler) -> None:
        """Follow the next copy of `scheduler`, which has taken no step yet."""

        def copy(_memo: dict[int, Any]) -> Scheduler:
            self.scheduler = type(scheduler).from_config(scheduler.config)
            self.scheduler.step = self._watched(self.scheduler.step)
            return self.scheduler

        scheduler.__deepcopy__ = copy  # where copy.deepcopy looks

    def go_on_after_the_first_step(self, latents: Tensor, state: Tree) -> None:
        """Let the first step return saved latents, and leave the scheduler in the saved state."""
        self._instead = latents, state

    def _watched(self, step: Any) -> Any:
        @wraps(step)
        def watched_step(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            latents, *rest = step(*args, **kwargs)
            if self._instead is not None:
                latents, state = self._instead
                self.scheduler.__dict__.update(state)
                self._instead = None
            self.latents = latents
            return (latents, *rest)

        return watched_step
