"""Follows jobs of a running server in the terminal: a bar for each, plain lines, or a line of JSON for each event.

Every job has a stream of its own, read in a thread; one that breaks is opened again where it was, for as long as it
takes: the server may be restarting. What is shown is told by the main thread alone.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from polyreel.cli_jobs import ENDED, progress_of, remark_of
from polyreel.client import Client, Event, ServerAway, ServerRefused
from polyreel.errors import PolyreelError

#: Pause before a broken stream is opened again, seconds.
_AGAIN_S = 1.0

#: What a thread says instead of an event while the server is away.
_AWAY = Event("away", {})

#: What the threads say, each event with its job's id.
Heard = queue.SimpleQueue[tuple[str, Event | PolyreelError]]

#: Exit code of a watching that Ctrl-C ended, as shells have it.
_INTERRUPTED = 130


class Display(Protocol):
    """Shows what happens; used as a context while it is shown."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: object) -> None: ...

    def tell(self, job_id: str, event: Event) -> None:
        """Show an event of a job; `away` says that its stream has broken and is being opened again."""


def watch_all(client: Client, ids: Sequence[str], display: Display) -> int:
    """Follow jobs until all have ended; return 0 when all have succeeded, 1 when one has not, 130 after Ctrl-C.

    Raises:
        ConfigurationError: the key is not good, or nobody answered from the beginning.
    """
    heard: Heard = queue.SimpleQueue()
    over = threading.Event()
    for job_id in dict.fromkeys(ids):
        threading.Thread(target=_follow, args=(client, job_id, heard, over), name="watch", daemon=True).start()
    open_ids, well = set(ids), True
    try:
        with display:
            while open_ids:
                job_id, said = heard.get()
                if isinstance(said, ServerRefused):
                    said = Event("refused", {"id": job_id, "error": said.message})
                if isinstance(said, PolyreelError):
                    raise said
                display.tell(job_id, said)
                if said.name in ("end", "gone", "refused"):
                    open_ids.discard(job_id)
                    well = well and said.data.get("status") == "succeeded"
    except KeyboardInterrupt:
        typer.echo("Not watching any more; the jobs go on. See them with: polyreel jobs list", err=True)
        return _INTERRUPTED
    finally:
        over.set()
    return 0 if well else 1


def _follow(client: Client, job_id: str, heard: Heard, over: threading.Event) -> None:
    """Put every event of a job into `heard`, its end or an error last; `over` says that nobody listens any more."""
    last, is_known, is_away = "", False, False
    while not over.is_set():
        try:
            with client.events(job_id, last) as events:
                is_known, is_away = True, False
                for event in events:
                    last = event.id or last
                    if event.name != "server-restarting":
                        heard.put((job_id, event))
                    if event.name in ("end", "gone"):
                        return
        except ServerAway as err:
            if not is_known:
                heard.put((job_id, err))
                return
        except ServerRefused as err:
            if err.status < 500:
                heard.put((job_id, err))
                return
        except PolyreelError as err:
            heard.put((job_id, err))
            return
        except Exception:
            if over.is_set():  # the client was closed under it
                return
            raise
        if not is_away:
            heard.put((job_id, _AWAY))
            is_away = True
        over.wait(_AGAIN_S)


class JsonLines:
    """An object on a line for each event, without pictures."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def tell(self, job_id: str, event: Event) -> None:
        data = {name: value for name, value in event.data.items() if name != "preview"}
        typer.echo(json.dumps({"event": event.name, "id": job_id} | data))


class Lines:
    """A line for whatever changes: for logs, and for pipes."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def tell(self, job_id: str, event: Event) -> None:
        text = words(event)
        if self._said.get(job_id) != text:  # the estimate alone is not worth a line
            self._said[job_id] = text
            estimate = f", {remark_of(event.data)}" if event.name == "progress" and remark_of(event.data) else ""
            typer.echo(f"{job_id}: {text}{estimate}")


class Bars:
    """A bar for each job.

    Args:
        console: where they are drawn; None is the terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[words]}", markup=False),
        )
        self._progress = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._progress)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tell(self, job_id: str, event: Event) -> None:
        if job_id not in self._tasks:
            self._tasks[job_id] = self._progress.add_task(job_id, total=100, words="")
        task, data = self._tasks[job_id], event.data
        estimate = remark_of(data) if event.name == "progress" else ""
        self._progress.update(task, words=", ".join(filter(None, (words(event), estimate))))
        if event.name == "progress":
            self._progress.update(task, completed=data["progress"])
        elif data.get("status") == "succeeded":
            self._progress.update(task, completed=100)


def words(event: Event) -> str:
    """Return in words what an event says, without the estimate."""
    data: dict[str, Any] = event.data  # Any: JSON
    if event.name == "away":
        return "the server is away; waiting for it"
    if event.name == "refused":
        return str(data["error"])
    if event.name == "gone":
        return "deleted"
    if event.name == "end":
        return " ".join([_end(data), *(output["url"] for output in data["outputs"])])
    return f"{data['stage'] or data['status']}, {progress_of(data)}" if data["status"] not in ENDED else data["status"]


def _end(job: dict[str, Any]) -> str:
    return f"{job['status']}: {remark_of(job)}" if remark_of(job) else str(job["status"])
