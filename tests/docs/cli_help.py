"""The help of every command, for `docs/cli.md`: plain text of a fixed width, whatever terminal there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from polyreel.cli import app

#: Characters of a line.
_WIDTH = 100


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its words, groups before what is in them. Any: typer's own click has no public types."""
    yield from _below("polyreel", get_command(app))


def _below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield words, command
    for name, one in sorted(getattr(command, "commands", {}).items()):
        yield from _below(f"{words} {name}", one)


def help_of(words: str, command: Any) -> str:
    """Return what `--help` says."""
    command.rich_markup_mode = None  # without boxes, which are as wide as the terminal
    command.no_args_is_help = False
    context = command.make_context(words, [], resilient_parsing=True, max_content_width=_WIDTH, terminal_width=_WIDTH)
    return "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())


def cli_help() -> str:
    """Return a section for each command."""
    parts = []
    for words, command in commands():
        level = "##" if words == "polyreel" or hasattr(command, "commands") else "###"
        parts.append(f"{level} {words}\n\n```text\n{help_of(words, command)}\n```")
    return "\n\n".join(parts)
