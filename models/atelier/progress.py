"""What a person sees of a training while it runs: a bar where there is a terminal, and lines that stay above it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm


def counted(what: str, total: int, done: int = 0, *, shown: bool = True) -> Iterable[int]:
    """Count from `done` to `total` - 1, with a bar on a terminal.

    Nothing is drawn where the output goes to a file, or when it is not to be `shown`.
    """
    off = None if shown else True  # None: where there is no terminal
    bar: Iterable[int] = tqdm(range(done, total), what, total, initial=done, unit="step", disable=off, leave=False)
    return bar


def write(line: str) -> None:
    """Write a line to the standard output, above the bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
