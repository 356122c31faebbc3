"""How far a stop of this worker has come: for the handlers of the signals, and for who hands the jobs back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stop:
    """A stop that does not wait for the jobs in progress.

    It reaches the main thread as SystemExit, raised by the handler of a signal. That may come to nothing: Python drops
    what is raised in a `__del__` (a tokenizer's regular expressions have one), and a library may catch all, or make
    another error of it. So the signal is sent again until the stop is heeded, and an error in between means the stop.

    Attributes:
        is_forced: the jobs in progress are to be handed back now.
        is_heeded: that has begun; nothing may cut it off any more.
    """

    is_forced: bool = False
    is_heeded: bool = False
