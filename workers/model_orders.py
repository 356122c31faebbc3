"""What administrators say about the models of this process: heard at any time, done between two jobs.

See `polyreel.commands` for what can be said, and for what the heartbeat says of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from polyreel.commands import Action, Command, Orders
from polyreel.errors import CheckpointUnavailable, PolyreelError
from workers.attempts import Attempts
from workers.failures import is_device_error
from workers.memory import free_memory, let_go

log = structlog.get_logger()

#: How many commands the heartbeat still tells of when they are done.
_TOLD = 16

#: What the heartbeat says of a command: id, action, model, state and reason. Any: JSON.
State = dict[str, Any]


class Refused(PolyreelError):
    """Raised for what a worker will not do; the message says why."""


class ModelOrders:
    """Loads, unloads, pins and unpins. `hear` and `states` are safe to call from other threads.

    Args:
        attempts: loads models, and knows which do not load.
        on_change: called when what the heartbeat says has changed.

    Attributes:
        loading: catalogue name of the model that is being loaded for an order, "" for none.
    """

    def __init__(self, attempts: Attempts, on_change: Callable[[], None] = lambda: None) -> None:
        self.loading = ""
        self._attempts = attempts
        self._on_change = on_change
        self._lock = threading.Lock()
        self._told: set[str] = set()  # ids of what Redis still tells again and again
        self._waiting: deque[Command] = deque()
        self._pins: dict[str, bool] = {}  # as they were heard
        self._tried: dict[str, bool] = {}  # what was last made of them
        self._ended: deque[State] = deque(maxlen=_TOLD)

    def hear(self, orders: Orders) -> None:
        """Take orders; each command once, however often it is told."""
        with self._lock:
            self._waiting += [command for command in orders.commands if command.id not in self._told]
            self._told = {command.id for command in orders.commands}
            self._pins = dict(orders.pins)
        self._on_change()

    def states(self) -> list[State]:
        """Return what the heartbeat says of commands, the newest last."""
        with self._lock:
            waiting = [*self._due_pins(), *self._waiting]
            return [*self._ended, *(_state(command, "waiting") for command in waiting)]

    def carry_out(self) -> None:
        """Do all that waits; to be called when no job runs. What cannot be done is refused, and said."""
        while (command := self._next()) is not None:
            since = time.monotonic()
            try:
                self._do(command)
            except Exception as err:
                reason = err.message if isinstance(err, PolyreelError) else str(err)
                log.warning("command refused", action=command.action, model=command.model, reason=reason)
                self._end(_state(command, "refused", reason))
                self._clean_up(command.model, err)
            else:
                seconds = round(time.monotonic() - since, 3)
                log.info("command done", action=command.action, model=command.model, seconds=seconds)
                self._end(_state(command, "done"))

    def _next(self) -> Command | None:
        """Take what is to be done next: pins before commands, and what makes room first."""
        with self._lock:
            due = self._due_pins()
            if due:
                self._tried[due[0].model] = due[0].action == "pin"
                return due[0]
            return self._waiting.popleft() if self._waiting else None

    def _due_pins(self) -> list[Command]:
        """Return the pins that were not tried yet, as commands; of models that are not served here, none."""
        due = [
            (is_pinned, model)
            for model, is_pinned in self._pins.items()
            if self._tried.get(model) != is_pinned and model in self._attempts.residency.catalogue.models
        ]
        actions: dict[bool, Action] = {True: "pin", False: "unpin"}
        return [Command(f"pin:{model}", actions[is_pinned], model) for is_pinned, model in sorted(due)]

    def _end(self, state: State) -> None:
        with self._lock:
            self._ended.append(state)
        self._on_change()

    def _do(self, command: Command) -> None:
        residency, model = self._attempts.residency, command.model
        if model not in residency.catalogue.models:
            raise Refused(
                f"This worker does not serve {model}; its profile names {', '.join(residency.catalogue.models)}."
            )
        if command.action == "unload":
            if model in residency.pinned:
                raise Refused(f"{model} is pinned, so it stays loaded; unpin it first.")
            residency.unload(model)
        elif command.action == "unpin":
            residency.unpin(model)
        elif command.action == "load":
            self._load(model)
        else:
            was_pinned = model in residency.pinned
            residency.pin(model)
            try:
                self._load(model)
            except Exception:
                if not was_pinned:
                    residency.unpin(model)
                raise

    def _load(self, model: str) -> None:
        residency = self._attempts.residency
        self.loading = model
        self._on_change()  # so that others leave its jobs to us
        try:
            self._attempts.load(model, residency.loaded_with(model))
        finally:
            self.loading = ""

    def _clean_up(self, model: str, err: Exception) -> None:
        let_go(err)
        if is_device_error(err):
            self._attempts.recover(model, err)
        elif not isinstance(err, Refused | CheckpointUnavailable):
            free_memory()


def _state(command: Command, state: str, reason: str = "") -> State:
    return {"id": command.id, "action": command.action, "model": command.model, "state": state, "reason": reason}
