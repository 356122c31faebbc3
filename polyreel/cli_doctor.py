"""The command `polyreel doctor`: shows what `polyreel.doctor` finds, and what to do about it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table

from polyreel.cli_options import ConfigOption, JsonOption, StateDirOption
from polyreel.doctor import Finding
from polyreel.profiles import load_settings

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


def doctor(config: ConfigOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """Say whether this machine, its Redis and its storage can run the server, and how to mend what cannot.

    The exit code is 0 when all is well or may be meant (!), 1 when something fails (✗), 2 when a setting is wrong.
    """
    from polyreel.doctor import examine, patient_of

    settings = load_settings(config, state_dir=state_dir).settings
    _ = settings.catalogue  # refers only to what there is
    flags = [f"--{name}={value}" for name, value in (("config", config), ("state-dir", state_dir)) if value is not None]
    with patient_of(settings, flags) as patient:
        found = examine(patient)
    if as_json:
        typer.echo(json.dumps([{"check": name, **asdict(finding)} for name, finding in found]))
    else:
        _show(found)
    raise typer.Exit(1 if any(finding.status == "fail" for _, finding in found) else 0)


def _show(found: list[tuple[str, Finding]]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, finding in found:
        mark, colour = _MARKS[finding.status]
        title = f"{name}: {finding.of}" if finding.of else name
        table.add_row(f"[{colour}]{mark}[/]", title, _escaped(finding.says))
        if finding.fix:
            table.add_row("", "", f"[{colour}]→[/] {_escaped(finding.fix)}")
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
