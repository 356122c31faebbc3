"""What an administrator tells workers about their models: load, unload, pin, unpin.

    polyreel:commands:{worker}  sorted set of commands to load or unload by when they were given, JSON; expires
    polyreel:pinned             hash, model to "1" (stays loaded) or "0" (may go), instead of what the catalogue says

Loading and unloading is told to workers that live now. Pinning is what all workers are to do from now on, those that
start later too, so it is kept, and no worker can be told alone: its name does not outlive its process.

Workers hear of both at their heartbeat, within about a second also while they denoise, and do it between two jobs. What
became of it they say in theirs, `polyreel:worker:{name}`: "loaded", "pinned", and "commands", a list of
{"id", "action", "model", "state": "waiting" | "done" | "refused", "reason"}, the newest last. A pin that cannot be had
is there too, under the id "pin:{model}".
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import redis

from polyreel.audit import KEPT, Actor, command_line, fields_of, say
from polyreel.scripts import arguments, script

#: What workers can be told about a model.
Action = Literal["load", "unload", "pin", "unpin"]
ACTIONS: tuple[Action, ...] = get_args(Action)

#: A command that a worker has not heard of for so long is forgotten, seconds.
EXPIRES_S = 60

#: Hash of the models that are pinned, or are not, whatever the catalogue says.
PINNED = "polyreel:pinned"


@dataclass(frozen=True, slots=True)
class Command:
    """Load or unload a model, once.

    Args:
        id: under which the worker says what became of it.
        action: "load" or "unload".
        model: catalogue name.
    """

    id: str
    action: Action
    model: str


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told at a heartbeat.

    Args:
        commands: of the last minute, the oldest first; each is told again until it expires.
        pins: whether a model stays loaded, for those of which somebody said so.
    """

    commands: tuple[Command, ...] = ()
    pins: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Given:
    """A command that was given.

    Args:
        id: of the command, see the module; of a pin it is "pin:{model}".
        workers: names of the live workers that will hear of it; none for a worker that is gone.
    """

    id: str
    workers: tuple[str, ...]


class Commands:
    """Gives commands. All calls block: an async caller uses a thread.

    Args:
        client: from `polyreel.records.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._give = script(client, "command")

    def give(self, action: Action, model: str, worker: str = "", actor: Actor | None = None) -> Given:
        """Tell workers what to do with a model; when this returns, they will hear of it, and the audit log says so.

        Args:
            model: catalogue name, which the caller has looked up.
            worker: name of the one that is meant, "" for all that live.
            actor: who gives it; None is the command line.

        Raises:
            ValueError: no such action, or a pin for one worker alone.
        """
        if action not in ACTIONS:
            raise ValueError(f"action: use {', '.join(ACTIONS)}, got {action!r}")
        keeps = action in ("pin", "unpin")
        if keeps and worker:
            raise ValueError(f"{action} is for all workers: the name {worker!r} does not outlive its process")
        command = Command(f"pin:{model}" if keeps else uuid.uuid4().hex, action, model)
        noted = fields_of(actor or command_line(), f"models.{action}", model, {"worker": worker} if worker else None)
        terms = asdict(command) | {"worker": worker, "for_s": EXPIRES_S, "command": json.dumps(asdict(command))}
        terms["noted"] = [part for pair in noted.items() for part in pair]
        given = Given(command.id, tuple(str(name) for name in self._give(args=arguments(terms | {"most": KEPT}))))
        say(noted)
        return given

    def pins(self) -> dict[str, bool]:
        """Return whether a model stays loaded, for those of which somebody said so."""
        return {str(model): value == "1" for model, value in self._client.hgetall(PINNED).items()}


def parse_orders(said: object) -> Orders:
    """Read the answer to a heartbeat: pairs of `PINNED`, then the commands; what a newer version means is left out."""
    if not isinstance(said, list) or len(said) != 2:
        return Orders()
    pairs, texts = said
    commands = []
    for text in texts:
        with suppress(TypeError, ValueError):
            commands.append(Command(**json.loads(text)))
    return Orders(
        tuple(commands), {str(model): value == "1" for model, value in zip(pairs[::2], pairs[1::2], strict=True)}
    )
