"""The commands `polyreel backup` and `polyreel restore`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import redis
import typer

from polyreel import audit
from polyreel.backup import back_up
from polyreel.cli_options import ConfigOption, JsonOption, StateDirOption
from polyreel.cli_queue import opened
from polyreel.errors import ConfigurationError, PolyreelError
from polyreel.profiles import load_settings
from polyreel.records import redis_errors
from polyreel.redis_copy import open_copier
from polyreel.restore import CLIENT_NAME
from polyreel.restore import restore as put_back
from polyreel.settings import Settings
from polyreel.state_lock import state_lock
from polyreel.storage import connect_storage


def backup(
    file: Annotated[Path, typer.Argument(help="A new file, .tar.gz or .tar; only you can read it.")],
    results: Annotated[bool, typer.Option("--results/--no-results", help="With the files of a local storage.")] = True,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Save records, keys, secrets and results into one file; the server may run."""
    settings = load_settings(config, state_dir=state_dir).settings
    storage = connect_storage(settings.storage_url, settings.s3)
    with opened(settings) as (client, with_url), redis_errors():
        client.ping()
        with open_copier(_url(with_url), CLIENT_NAME) as copier:
            done = back_up(file, copier, storage, settings, results=results)
        audit.note(client, audit.command_line(), "backup.create", file.name, {"jobs": sum(done.manifest.jobs.values())})
    if as_json:
        typer.echo(json.dumps({"file": str(file), **asdict(done)}))
        return
    jobs = ", ".join(f"{count} {status}" for status, count in sorted(done.manifest.jobs.items())) or "none"
    typer.echo(
        f"{file}: {done.bytes / 1e6:.1f} MB. {done.manifest.keys} keys of Redis (jobs: {jobs}), {len(done.secrets)} "
        f"secret files, {done.files} results of {done.files_bytes / 1e6:.1f} MB. Writes were held for "
        f"{done.held_s:g} s."
    )
    for note in done.notes:
        typer.echo(note, err=True)


def restore(
    file: Annotated[Path, typer.Argument(help="From `polyreel backup`.", exists=True, dir_okay=False)],
    force: Annotated[bool, typer.Option("--force", help="Remove first what polyreel has in this Redis.")] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a backup back, while nothing runs; exit code 1 when results of jobs are missing or damaged."""
    settings = load_settings(config, state_dir=state_dir).settings
    if settings.redis_url is None:
        with state_lock(settings.state_dir) as is_mine:
            if not is_mine:
                raise ConfigurationError(f"state_dir: polyreel up runs on {settings.state_dir}; stop it first.")
    storage = connect_storage(settings.storage_url, settings.s3)
    with opened(settings) as (client, with_url), redis_errors():
        client.ping()
        client.connection_pool.disconnect()  # or it would be taken for a process of the server
        try:
            with open_copier(_url(with_url), CLIENT_NAME) as copier:
                done = put_back(file, copier, storage, with_url, force=force)
        except (ConfigurationError, redis.RedisError):
            raise
        except PolyreelError as err:
            raise ConfigurationError(f"{err.message} The restore is not done: run it again with --force.") from err
        audit.note(client, audit.command_line(), "backup.restore", file.name, {"keys": done.keys})
    if as_json:
        typer.echo(json.dumps({"file": str(file), **asdict(done)}))
    else:
        typer.echo(
            f"{done.keys} keys of Redis ({done.expired} had expired), {len(done.secrets)} secret files, {done.files} "
            f"results of {done.files_bytes / 1e6:.1f} MB. {done.requeued} jobs that ran wait again. "
            + (f"{done.verified} results verified." if done.manifest.has_results else "It has no results.")
        )
        if not done.manifest.has_results:
            typer.echo(f"The results were in {done.manifest.results_in}: they are to be here too.", err=True)
        for what, keys in (("missing", done.missing), ("damaged", done.damaged)):
            if keys:
                typer.echo(f"{len(keys)} results are {what}: {', '.join(keys[:5])}{' …' if keys[5:] else ''}", err=True)
    if done.missing or done.damaged:
        raise typer.Exit(1)


def _url(settings: Settings) -> str:
    assert settings.redis_url is not None  # noqa: S101 `opened` has set it
    return settings.redis_url.get_secret_value()
