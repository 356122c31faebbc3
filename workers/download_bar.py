"""How far a download is: a bar on a terminal, a line for every tenth anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock


@contextmanager
def download_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a download of `total` bytes on stderr; the yielded function is told how many have arrived, by any thread."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _Lines(name, total).add


class _Lines:
    """Prints a line whenever another tenth has arrived."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.arrived, self.shown = 0, 0
        self.lock = Lock()

    def add(self, count: int) -> None:
        """Count bytes; negative when some were thrown away."""
        with self.lock:
            self.arrived += count
            tenths = self.arrived * 10 // self.total if self.total else 10
            if tenths > self.shown:
                self.shown = tenths
                print(f"{self.name}: {tenths * 10} %", file=sys.stderr, flush=True)  # noqa: T201
