"""The commands `polyreel config …`: the settings that a start would use, a file to begin with, and its check."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from polyreel.cli_options import ConfigOption, JsonOption, StateDirOption, complete_profiles
from polyreel.errors import ConfigurationError
from polyreel.processes import command
from polyreel.profiles import Loaded, load_settings
from polyreel.settings import Settings

config_app = typer.Typer(help="Look at the settings, begin a file of them, and check one.", no_args_is_help=True)

_CATALOGUE = ("models", "loras", "embeddings")


@config_app.command("show")
def show(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the settings that a start would use; secrets are hidden."""
    loaded = load_settings(config, state_dir=state_dir)
    if as_json:
        values = {name: _plain(loaded, name) for name in Settings.model_fields}
        typer.echo(json.dumps({"settings": values, "origin": loaded.origin} if origin else values))
        return
    table = Table("setting", "value", *(["from"] if origin else []), box=None, padding=(0, 2, 0, 0))
    for name in Settings.model_fields:
        row = [name, _shown(loaded, name)]
        table.add_row(*row, *([loaded.origin[name]] if origin else []))
    Console(markup=False).print(table)


@config_app.command("init")
def init(
    file: Annotated[Path, typer.Argument(help="File to write; - is the standard output.")] = Path("polyreel.yaml"),
    profile: Annotated[
        str, typer.Option(help="Shipped profile that it extends.", autocompletion=complete_profiles)
    ] = "tiny",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a file with every setting, what it means and its default, all commented out."""
    from polyreel.profiles import read_profile
    from polyreel.settings_file import settings_file

    read_profile(profile)
    if str(file) == "-":
        typer.echo(settings_file(profile), nl=False)
        return
    text = settings_file(profile, str(file))
    try:
        with file.open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise ConfigurationError(f"FILE: {file} is there already. Name another, or replace it: --force.") from None
    except OSError as err:
        raise ConfigurationError(f"FILE: cannot write {file}: {err.strerror}. Name another.") from None
    if as_json:
        typer.echo(json.dumps({"file": str(file), "profile": profile}))
    else:
        typer.echo(f"Written: {file}. Start with it: polyreel up --config {file}")


@config_app.command("check")
def check(
    file: Annotated[
        str | None, typer.Argument(help="A YAML file or a shipped profile.", autocompletion=complete_profiles)
    ] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether the settings are right: each of them, the catalogue, and the dialects' sections.

    Starts nothing and asks nobody; whether this machine can do it is what `polyreel doctor` says. Exit code 2 if not.
    """
    chosen = file or config
    loaded = load_settings(chosen, state_dir=state_dir)
    catalogue = loaded.settings.catalogue  # refers only to what there is
    flags = [f"--{name}={value}" for name, value in (("config", chosen), ("state-dir", state_dir)) if value is not None]
    _pass("check settings", flags)
    if all(find_spec(name) for name in ("numpy", "safetensors")):  # else no family can be asked here
        _pass("check families", flags)
    counts = {"models": len(catalogue.models), "loras": len(catalogue.loras), "embeddings": len(catalogue.embeddings)}
    if as_json:
        typer.echo(json.dumps({"ok": True, **counts}))
    else:
        typer.echo(f"ok: {counts['models']} models, {counts['loras']} LoRAs, {counts['embeddings']} embeddings")


@config_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a settings file, by which editors complete and check it."""
    typer.echo(json.dumps(file_schema(), indent=2))


def file_schema() -> dict[str, Any]:
    """Return the JSON Schema of a settings file. Any: JSON."""
    found = Settings.model_json_schema(by_alias=False)
    texts = {"api_keys", "gpus", "admins", "webhook_allow", "webhook_secrets", "trusted_proxies", "cors_origins"}
    for name in texts | {"old_link_secrets"}:  # what may be written as one text, joined by commas
        field = found["properties"][name]
        kinds = [{key: field.pop(key) for key in list(field) if key not in ("title", "default", "description")}]
        field["anyOf"] = [*kinds, {"type": ["string", "integer", "array"] if name == "gpus" else "string"}]
    extends = {"type": "string", "description": "The profile, or the file, that this one changes."}
    return found | {"properties": {"extends": extends, **found["properties"]}, "title": "Settings of Polyreel"}


def _pass(process: str, flags: list[str]) -> None:
    """Run a check of another package in its own process; its words become ours."""
    done = subprocess.run(command(process, flags), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigurationError(done.stderr.strip() or f"{process}: ended with exit code {done.returncode}.")


def _shown(loaded: Loaded, name: str) -> str:
    value = getattr(loaded.settings, name)
    if name in _CATALOGUE:
        return ", ".join(value) or "-"
    if name == "api_keys":
        return ", ".join(f"{owner}:***" for owner in value) or "-"
    if isinstance(value, SecretStr):
        return "***"
    return "-" if value in (None, (), {}) else str(value)


def _plain(loaded: Loaded, name: str) -> object:
    """Return a setting as JSON; secrets are three stars, as everywhere."""
    dumped = loaded.settings.model_dump(mode="json", include={name})[name]
    return json.loads(json.dumps(dumped).replace('"**********"', '"***"'))
