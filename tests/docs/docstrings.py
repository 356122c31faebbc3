"""Reads the `Args:` of a docstring, of which the tables of the documentation are made."""

from __future__ import annotations

import inspect
import re

_NAMES = re.compile(r"    (\w+(?:, \w+)*): (.*)")


def arguments(documented: object) -> dict[str, str]:
    """Return what the docstring of a class says of each of its arguments, one line each, as Markdown.

    Args:
        documented: its docstring has an `Args:` section, or none.
    """
    _, _, section = inspect.cleandoc(documented.__doc__ or "").partition("\nArgs:\n")
    said: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if not line.startswith("    "):
            break
        if found := _NAMES.fullmatch(line):
            names = found[1].split(", ")
            said |= dict.fromkeys(names, found[2])
        else:
            said |= {name: f"{said[name]} {line.strip()}" for name in names}
    return {name: as_markdown(text) for name, text in said.items()}


def as_markdown(text: str) -> str:
    """Return a docstring's text for a page of `docs/`: its pages become links, Python's None becomes YAML's null."""
    linked = re.sub(r"`?docs/((?:\w+/)?([\w-]+)\.md)`?", r"[\2](\1)", text)
    return re.sub(r"\bNone\b", "`null`", linked).replace("|", "\\|")
