"""The commands `polyreel keys …`: make, list, revoke and rotate the API keys in Redis.

What a script wants stands on the standard output, the words for people beside it. Each change is noted in the audit
log (`polyreel.audit`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from polyreel.audit import command_line
from polyreel.cli_queue import opened
from polyreel.errors import ConfigurationError, did_you_mean
from polyreel.key_store import KeyStore, StoredKey, pepper_of
from polyreel.keys import Scope
from polyreel.limits import KeyLimits
from polyreel.profiles import load_settings
from polyreel.settings import Settings

keys_app = typer.Typer(help="Make and end API keys.", no_args_is_help=True)

ConfigOption = Annotated[str | None, typer.Option("--config", help="A YAML file, or a shipped profile.")]
StateDirOption = Annotated[Path | None, typer.Option("--state-dir", help="Folder of the queue and the secrets.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NameArgument = Annotated[str, typer.Argument(help="The key's id (8 characters), or its whole text.", metavar="ID")]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@keys_app.command()
def create(
    owner: Annotated[str, typer.Argument(help="Whose jobs the key makes and sees.", metavar="NAME")],
    scopes: Annotated[str, typer.Option(help="What it may do: submit, read, admin.")] = "submit,read",
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Submits that are taken in a minute.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=1, help="Unfinished jobs.")] = None,
    max_running: Annotated[int | None, typer.Option(min=1, help="Jobs that run at the same time.")] = None,
    gpu_seconds_per_day: Annotated[float | None, typer.Option(min=1, help="Seconds of a GPU in a day of UTC.")] = None,
    models: Annotated[str | None, typer.Option(help="Catalogue names that it may use; default: all.")] = None,
    expires: Annotated[str | None, typer.Option(help="How long it is good: 30d, 12h; default: for ever.")] = None,
    retention: Annotated[
        str | None, typer.Option(help="How long its ended jobs are kept: 1d, 2h; default: as long as the server's.")
    ] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. Its text is shown this once; only a hash of it is kept."""
    settings = load_settings(config, state_dir=state_dir).settings
    limits = KeyLimits(
        requests_per_minute,
        max_queued,
        max_running,
        gpu_seconds_per_day,
        _models(models, settings),
        None if retention is None else _seconds("--retention", retention),
    )
    wanted = _scopes(scopes)
    lasts_s = None if expires is None else _seconds("--expires", expires)
    with _store(settings) as store:
        text, key = store.create(owner, wanted, limits, lasts_s)
    _show_made(text, key, as_json)


@keys_app.command("list")
def list_(config: ConfigOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """List all keys, those that are not good any more among them. Their texts are kept nowhere."""
    with _store(load_settings(config, state_dir=state_dir).settings) as store:
        keys, now = store.all(), store.now()
    if as_json:
        typer.echo(json.dumps([key.to_dict() | {"state": key.state(now)} for key in keys]))
        return
    table = Table("id", "owner", "scopes", "limits", "state", "made", "last used", box=None, padding=(0, 2, 0, 0))
    for key in keys:
        state = key.state(now)
        if state == "active" and key.expires_at:
            state = f"until {_time(key.expires_at)}"
        made, used = _time(key.created_at), _time(key.last_used_at) if key.last_used_at else "never"
        table.add_row(key.id, key.owner, ", ".join(sorted(key.scopes)), _limits(key), state, made, used)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@keys_app.command()
def revoke(
    name: NameArgument, config: ConfigOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False
) -> None:
    """End a key: within two seconds it is good nowhere. Jobs that it made go on."""
    with _store(load_settings(config, state_dir=state_dir).settings) as store:
        key = store.revoke(name)
    if as_json:
        typer.echo(json.dumps(key.to_dict()))
    else:
        typer.echo(f"The key {key.id} of {key.owner} is revoked.")


@keys_app.command()
def rotate(
    name: NameArgument,
    overlap: Annotated[str, typer.Option(help="How long the one before stays good: 24h, 0s.")] = "24h",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key that follows another, with its owner, scopes and limits; what was used counts on."""
    overlap_s = _seconds("--overlap", overlap)
    with _store(load_settings(config, state_dir=state_dir).settings) as store:
        text, key = store.rotate(name, overlap_s)
    _show_made(text, key, as_json)


@contextmanager
def _store(settings: Settings) -> Iterator[KeyStore]:
    """Give the keys of the settings' Redis.

    Raises:
        ConfigurationError: there is no queue, or it does not answer; or the pepper of its keys is not known here.
    """
    with opened(settings) as (client, with_url):
        yield KeyStore(client, pepper_of(with_url), command_line())


def _show_made(text: str, key: StoredKey, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"key": text} | key.to_dict()))
        return
    typer.echo(text)
    until = f", good until {_time(key.expires_at)}" if key.expires_at else ""
    typer.echo(
        f"The key {key.id} of {key.owner}: {', '.join(sorted(key.scopes))}; {_limits(key)}{until}. "
        "It is shown this once; who loses it makes another.",
        err=True,
    )


def _scopes(text: str) -> list[Scope]:
    known: dict[str, Scope] = {scope: scope for scope in get_args(Scope)}
    found = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word not in known:
            raise ConfigurationError(
                f"--scopes: there is no scope {word!r}.{did_you_mean(word, known)} Scopes: {', '.join(known)}."
            )
        found.append(known[word])
    if not found:
        raise ConfigurationError(f"--scopes: name one or more of {', '.join(known)}.")
    return found


def _models(text: str | None, settings: Settings) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    for name in names:
        if name not in settings.models:
            raise ConfigurationError(
                f"--models: {name!r} is no name of the catalogue.{did_you_mean(name, settings.models)} "
                f"It has {', '.join(settings.models)}. If the server runs with another profile, name it: --config."
            )
    if not names:
        raise ConfigurationError("--models: name one or more models of the catalogue, or leave it out for all.")
    return names


def _seconds(flag: str, text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhd])", text.strip().lower())
    if found is None or (flag != "--overlap" and int(found[1]) == 0):
        raise ConfigurationError(f"{flag}: write a whole number and s, m, h or d, such as 24h or 30d.")
    return float(int(found[1]) * _UNITS[found[2]])


def _limits(key: StoredKey) -> str:
    values = key.limits.to_dict()
    words = [f"{name} {'+'.join(v) if isinstance(v, list) else f'{v:g}'}" for name, v in values.items()]
    return ", ".join(words) or "no limits"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
