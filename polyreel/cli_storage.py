"""The commands `polyreel storage …`: where results are stored, and saying that they are to be here from now on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from polyreel import audit
from polyreel.cli_queue import opened
from polyreel.errors import ConfigurationError, StorageFailed
from polyreel.profiles import load_settings
from polyreel.records import redis_errors
from polyreel.storage import connect_storage
from polyreel.storage_marker import adopt as adopt_storage
from polyreel.storage_marker import known_of, mark_of, place_of

storage_app = typer.Typer(help="Where results are stored.", no_args_is_help=True)

ConfigOption = Annotated[str | None, typer.Option("--config", help="A YAML file, or a shipped profile.")]
StateDirOption = Annotated[Path | None, typer.Option("--state-dir", help="Folder of the queue and the secrets.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@storage_app.command()
def show(config: ConfigOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """Tell where the server's results lie, and whether this machine's storage is the same."""
    settings = load_settings(config, state_dir=state_dir).settings
    with opened(settings) as (client, _), redis_errors():
        known = known_of(client)
    try:
        mark = mark_of(connect_storage(settings.storage_url, settings.s3))
    except StorageFailed as err:
        raise ConfigurationError(f"storage: {err.message}") from err
    place, is_same = place_of(settings), known is not None and known.id == mark
    if as_json:
        typer.echo(json.dumps({"here": place, "server": known.place if known else None, "is_same": is_same}))
        return
    typer.echo(f"This machine's: {place}")
    typer.echo(f"The server's:   {known.place if known else 'not known yet; the first process to start says so'}")
    if known:
        typer.echo("They are the same." if is_same else "They are not the same.")


@storage_app.command()
def adopt(config: ConfigOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """Make this machine's storage the server's. Restart all processes then: one that has another does not start."""
    settings = load_settings(config, state_dir=state_dir).settings
    with opened(settings) as (client, with_url):
        try:
            known = adopt_storage(client, connect_storage(settings.storage_url, settings.s3), with_url)
        except StorageFailed as err:
            raise ConfigurationError(f"storage: {err.message}") from err
        with redis_errors():
            audit.note(client, audit.command_line(), "storage.adopt", known.place)
    if as_json:
        typer.echo(json.dumps({"server": known.place}))
    else:
        typer.echo(f"The server's results lie in {known.place} from now on.")
