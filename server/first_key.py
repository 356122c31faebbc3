"""Where the key goes that is made on the first start: to a person at a terminal, else into a file, never into a log.

What a container, a service or a CI run prints is kept by others, and read by more people than may use the server.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from polyreel.errors import ConfigurationError
from polyreel.settings import Settings

#: What the runtimes of containers leave in each: with a terminal too, everything printed goes into their log.
_OF_A_CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))


def key_file(settings: Settings) -> Path:
    """Return the file in which a first key is left."""
    return settings.state_dir / "local-key.txt"


def is_for_a_person(
    output: TextIO, environment: Mapping[str, str] = os.environ, traces: tuple[Path, ...] = _OF_A_CONTAINER
) -> bool:
    """Return whether what is printed is read by whoever started this process, and kept by nobody."""
    in_container = "KUBERNETES_SERVICE_HOST" in environment or any(trace.exists() for trace in traces)
    return output.isatty() and not in_container


def leave(settings: Settings, key: str) -> None:
    """Write a new key into its file, which only this user can read.

    Raises:
        ConfigurationError: it cannot be written.
    """
    path = key_file(settings)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(f"{key}\n", "ascii")
        draft.replace(path)
    except OSError as err:
        raise ConfigurationError(f"state_dir: {path} cannot be written: {err.strerror}.") from err
