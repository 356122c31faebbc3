"""The command `polyreel migrate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from polyreel import audit
from polyreel.cli_options import ConfigOption, JsonOption, StateDirOption
from polyreel.cli_queue import opened
from polyreel.migration import State
from polyreel.migration import check as look
from polyreel.migration import migrate as bring_up_to_date
from polyreel.profiles import load_settings
from polyreel.records import redis_errors
from polyreel.storage import connect_storage


def migrate(
    check: Annotated[bool, typer.Option("--check", help="Only look: exit code 0, 1 to migrate, 2 cannot.")] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring records of older versions up to date, or say what that would do; the server may run."""
    settings = load_settings(config, state_dir=state_dir).settings
    storage = connect_storage(settings.storage_url, settings.s3)
    migrated = 0
    with opened(settings) as (client, with_url), redis_errors():
        if not check:
            migrated = bring_up_to_date(client, with_url)
            if migrated:
                audit.note(client, audit.command_line(), "records.migrate", str(migrated))
        state = look(client, with_url, storage)
    if as_json:
        did = {} if check else {"migrated": migrated}
        typer.echo(json.dumps({**asdict(state), **did, "exit_code": state.exit_code}))
    else:
        _say(state, None if check else migrated)
    raise typer.Exit(state.exit_code)


def _say(state: State, migrated: int | None) -> None:
    counts = ", ".join(f"{count} of version {schema}" for schema, count in state.records.items()) or "none"
    typer.echo(f"Records: {counts}. This polyreel writes version {state.schema}.")
    if migrated is not None:
        typer.echo(f"Brought up to date: {migrated}.")
    elif state.to_migrate:
        typer.echo(f"To bring up to date: {state.to_migrate} (polyreel migrate); until then they are read as they are.")
    for older, lost in state.downgrade.items():
        if any(lost.values()):
            typer.echo(
                f"A polyreel that writes version {older} would not run {lost['unfinished']} unfinished jobs, and might "
                f"not show {lost['ended']} ended ones."
            )
    if state.newer:
        typer.echo(f"{state.newer} unfinished jobs are of a newer polyreel: only its workers run them.", err=True)
    if state.unreadable:
        shown = ", ".join(state.unreadable[:5])
        typer.echo(f"{len(state.unreadable)} records cannot be read and are left alone: {shown}", err=True)
    for what, said in state.fits.items():
        typer.echo(f"{what}: {said}", err=said != "ok")
