"""A settings file to begin with: every setting with its meaning, its variable and its value, commented out.

The text is made from `polyreel.settings` itself, so it can be neither incomplete nor out of date.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel

from polyreel.profiles import read_profile
from polyreel.settings import Settings

_HEAD = """\
# Settings of Polyreel. Each stands here with the value that it has anyway: take the "#" before it away to change it.
# The environment (POLYREEL_PORT=9000) goes before this file, and flags (--port 9000) before the environment.
# Is it right: polyreel config check {name}
# Start with it: polyreel up --config {name}

# What this file changes: tiny (a small model on the CPU), gpu (real models), or team (gpu, for several people).
extends: {profile}
"""

_MODEL = """\
# The catalogue comes from the profile above. An entry of your own, or a change to one of its:
#models:
#  my-wan:
#    family: wan
#    checkpoint: Wan-AI/Wan2.1-T2V-1.3B-Diffusers
#    names: {modelslab: [my-wan]}
"""

#: What is no line of its own.
_CATALOGUE = ("models", "loras", "embeddings")

_ARGUMENT = re.compile(r"    (\w+(?:, \w+)*): (.*)")


def settings_file(profile: str = "tiny", name: str = "polyreel.yaml") -> str:
    """Return the text of a file that changes nothing.

    Args:
        profile: shipped profile that it extends.
        name: of the file, for the commands in it.
    """
    settings = Settings(**read_profile(profile))
    names = [name for name in Settings.model_fields if name not in _CATALOGUE]
    parts = [_HEAD.format(profile=profile, name=name), _MODEL]
    parts += ["\n".join(_setting(settings, name)) + "\n" for name in names]
    return "\n".join(parts)


def meanings(documented: type[BaseModel]) -> dict[str, str]:
    """Return what a class' docstring says of each of its arguments."""
    _, _, section = inspect.cleandoc(documented.__doc__ or "").partition("\nArgs:\n")
    said: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if not line.startswith("    "):
            break
        if found := _ARGUMENT.fullmatch(line):
            names = found[1].split(", ")
            said |= dict.fromkeys(names, found[2])
        else:
            said |= {name: f"{said[name]} {line.strip()}" for name in names}
    return said


def variable_of(setting: str) -> str:
    """Return the environment variable of a setting, given as in YAML: `s3.endpoint`."""
    return "REDIS_URL" if setting == "redis_url" else f"POLYREEL_{setting.replace('.', '__')}".upper()


def _setting(settings: Settings, name: str) -> Iterator[str]:
    yield from _wrapped(meanings(Settings)[name], "# ")
    value = getattr(settings, name)
    if not isinstance(value, BaseModel):
        yield f"# {variable_of(name)}"
        yield f"#{name}: {_yaml(value)}"
        return
    yield f"#{name}:"
    for inner, meaning in meanings(type(value)).items():
        yield from _wrapped(meaning, "#  # ")
        yield f"#  {inner}: {_yaml(getattr(value, inner))}"


def _wrapped(meaning: str, before: str) -> list[str]:
    text = re.sub(r"\bNone\b", "null", meaning[:1].upper() + meaning[1:])
    return textwrap.wrap(text, 118, initial_indent=before, subsequent_indent=before)


def _yaml(value: object) -> str:
    if isinstance(value, tuple):
        value = list(value)
    plain = str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
