"""Options that several commands share, each with one wording, and what the shell completes them to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def complete_profiles(incomplete: str) -> list[str]:
    """Return the names of the shipped profiles."""
    from importlib.resources import files

    names = (entry.name for entry in files("configs").iterdir())
    return sorted(
        name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and name.startswith(incomplete)
    )


def complete_models(context: typer.Context, incomplete: str) -> list[str]:
    """Return the catalogue names of the profile that is given, or would be used."""
    from polyreel.errors import ConfigurationError
    from polyreel.profiles import load_settings

    try:
        names = load_settings(context.params.get("config")).settings.models
    except ConfigurationError:  # a shell that is asked for words can show no message
        return []
    return [name for name in names if name.startswith(incomplete)]


ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="A YAML file, or a shipped profile: tiny (default), gpu, team.",
        autocompletion=complete_profiles,
    ),
]
StateDirOption = Annotated[
    Path | None, typer.Option("--state-dir", help="Folder for the queue, tiny checkpoints, results and secrets.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="POLYREEL_URL", help="Of the server; default: the host and port of the settings."),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option("--key-file", help="File with the API key, - for the standard input; default: POLYREEL_KEY."),
]
