"""The command `polyreel audit`: what administrators did, the newest first."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from polyreel.audit import entries
from polyreel.cli_queue import opened
from polyreel.profiles import load_settings
from polyreel.records import redis_errors


def audit(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 50,
    config: Annotated[str | None, typer.Option("--config", help="A YAML file, or a shipped profile.")] = None,
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="Folder of the queue and the secrets.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what administrators did with keys, models, storage and backups: who, what, when, from where."""
    with opened(load_settings(config, state_dir=state_dir).settings) as (client, _), redis_errors():
        found = entries(client, limit)
    if as_json:
        typer.echo(json.dumps([entry.to_dict() for entry in found]))
        return
    table = Table("when", "who", "key", "what", "of", "with", "request", "from", box=None, padding=(0, 2, 0, 0))
    for entry in found:
        when = datetime.fromtimestamp(entry.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        more = ", ".join(f"{name} {value}" for name, value in entry.detail.items())
        who = entry.actor
        table.add_row(when, who.name, who.key, entry.action, entry.subject, more, who.request_id, who.address)
    Console(width=None if sys.stdout.isatty() else 240).print(table)
