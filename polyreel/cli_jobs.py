"""The commands `polyreel jobs …`: what one key's jobs are doing, and ending them, on a server that runs."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from polyreel.cli_options import (
    ConfigOption,
    JsonOption,
    KeyFileOption,
    StateDirOption,
    UrlOption,
    complete_models,
)
from polyreel.profiles import load_settings

jobs_app = typer.Typer(
    help="List, follow, cancel and delete the jobs of a key (POLYREEL_KEY) on a running server.", no_args_is_help=True
)

IdArgument = Annotated[str, typer.Argument(help="The job's id or number.", metavar="ID")]
IdsArgument = Annotated[list[str], typer.Argument(help="Ids or numbers of jobs.", metavar="ID...")]

#: States that end a job.
ENDED = ("succeeded", "failed", "cancelled")


@jobs_app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Jobs that are shown.")] = 20,
    after: Annotated[str | None, typer.Option(help="Id or number of the job before the page.")] = None,
    status: Annotated[str | None, typer.Option(help="One or several, joined by commas: queued, running, …")] = None,
    model: Annotated[str | None, typer.Option(help="Any name of a model.", autocompletion=complete_models)] = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, the newest first."""
    from polyreel.client import client_for

    with client_for(load_settings(config, state_dir=state_dir).settings, url, key_file) as client:
        page = client.ask("jobs", limit=limit, after=after, status=status, model=model)
    if as_json:
        typer.echo(json.dumps(page))
        return
    table = Table("id", "model", "status", "progress", "made", "", box=None, padding=(0, 2, 0, 0))
    for job in page["jobs"]:
        table.add_row(
            job["id"], job["model"], job["status"], progress_of(job), _time(job["created_at"]), remark_of(job)
        )
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)
    if page["next"]:
        typer.echo(f"There are more: --after {page['next']}", err=True)


@jobs_app.command()
def show(
    job_id: IdArgument,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one job: what was asked, how far it is, its files or its error."""
    from polyreel.client import client_for
    from polyreel.client import job as path

    with client_for(load_settings(config, state_dir=state_dir).settings, url, key_file) as client:
        job = client.ask(path(job_id))
    if as_json:
        typer.echo(json.dumps(job))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in _lines(job):
        table.add_row(name, text)
    Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False).print(table)


@jobs_app.command()
def watch(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids or numbers; default: all unfinished.", metavar="[ID]...")
    ] = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each event.")] = False,
) -> None:
    """Follow jobs until they have ended; Ctrl-C ends the watching and leaves them alone.

    The exit code is 0 when all have succeeded, else 1. A server that restarts meanwhile is waited for.
    """
    from polyreel.cli_watch import Bars, JsonLines, Lines, watch_all
    from polyreel.client import client_for

    with client_for(load_settings(config, state_dir=state_dir).settings, url, key_file) as client:
        ids = ids or [job["id"] for job in client.ask("jobs", limit=100)["jobs"] if job["status"] not in ENDED]
        if not ids:
            typer.echo("Nothing to watch: this key has no unfinished jobs.", err=True)
            return
        shown = JsonLines() if as_json else Bars() if sys.stdout.isatty() else Lines()
        code = watch_all(client, ids, shown)
    raise typer.Exit(code)


@jobs_app.command()
def cancel(
    ids: IdsArgument,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel jobs that wait or run. The exit code is 1 when one of them could not be cancelled any more."""
    from polyreel.client import client_for

    with client_for(load_settings(config, state_dir=state_dir).settings, url, key_file) as client:
        code = _each(ids, lambda path: client.ask(f"{path}/cancel", "POST"), as_json)
    raise typer.Exit(code)


@jobs_app.command()
def delete(
    ids: IdsArgument,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete jobs that have ended, with their prompts and files; one that has not ended is cancelled and stays."""
    from polyreel.client import client_for

    with client_for(load_settings(config, state_dir=state_dir).settings, url, key_file) as client:
        code = _each(ids, lambda path: client.ask(path, "DELETE"), as_json)
    raise typer.Exit(code)


def _each(ids: list[str], ask: Any, as_json: bool) -> int:  # Any: a function of a path
    """Ask for each job; one that is refused does not keep the others from being asked for."""
    from polyreel.client import ServerRefused, job

    said: list[dict[str, Any]] = []
    refused = 0
    for job_id in ids:
        try:
            answer = ask(job(job_id))
        except ServerRefused as err:
            refused += 1
            said.append({"id": job_id, "error": err.message})
            typer.echo(f"{job_id}: {err.message}", err=True)
            continue
        said.append(answer)
        if not as_json:
            typer.echo(f"{answer['id']}: {'deleted' if answer.get('deleted') else answer['status']}")
    if as_json:
        typer.echo(json.dumps(said))
    return 1 if refused else 0


def progress_of(job: dict[str, Any]) -> str:
    """Return in a few characters how far a job is."""
    if job["status"] in ENDED:
        return "100%" if job["status"] == "succeeded" else ""
    if job["position"] is not None:
        return "next" if job["position"] == 0 else f"{job['position']} before it"
    if job["total_steps"]:
        return f"{job['progress']}% ({job['step']}/{job['total_steps']})"
    return f"{job['progress']}%"


def remark_of(job: dict[str, Any]) -> str:
    """Return what else is worth a word: why it failed, or when it will be done."""
    if job.get("error"):
        return str(job["error"]["message"])
    if job["status"] not in ENDED and job["eta_s"] is not None:
        return f"about {duration(job['eta_s'])} left"
    return ""


def duration(seconds: float) -> str:
    """Return a time as people say it: 8 s, 2:05 min, 1:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"


def _lines(job: dict[str, Any]) -> list[tuple[str, str]]:
    asked = job["request"]
    prompts = " | ".join(part["prompt"] for part in asked.get("prompts", []))
    size = f"{asked['num_frames']} frames of {asked['width']}x{asked['height']} at {asked['fps']:g} fps"
    lines = [
        ("id", f"{job['id']} (number {job['number']}, {job['dialect']})"),
        ("status", " ".join(filter(None, (job["status"], progress_of(job))))),
        ("model", job["model"]),
        ("prompt", prompts),
        ("video", f"{size}, {asked['num_inference_steps']} steps, seed {asked['seed']}"),
        ("made", _time(job["created_at"])),
        ("started", _time(job["started_at"])),
        ("ended", _time(job["ended_at"])),
        ("kept until", _time(job["expires_at"])),
        ("remark", remark_of(job)),
        *(("file", output["url"]) for output in job["outputs"]),
    ]
    return [(name, text) for name, text in lines if text]


def _time(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
