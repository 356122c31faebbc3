"""`polyreel config check`, the worker's part: what it checks of the catalogue at start, without torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from polyreel.errors import ConfigurationError


def main(argv: list[str] | None = None) -> int:
    """Return 0 when the settings are right, and 2 with the reason on the standard error when they are not."""
    parser = argparse.ArgumentParser(prog="polyreel config check")
    parser.add_argument("--config")
    parser.add_argument("--state-dir", type=Path)
    options = parser.parse_args(argv)
    try:
        check(options.config, options.state_dir)
    except ConfigurationError as err:
        print(err, file=sys.stderr)  # noqa: T201
        return 2
    return 0


def check(config: str | None, state_dir: Path | None) -> None:
    """Check what a worker would, before it looks at any file.

    Raises:
        ConfigurationError: there is no such family, or more models are pinned than have room.
    """
    from polyreel.profiles import load_settings
    from workers.residency import Residency

    settings = load_settings(config, state_dir=state_dir).settings
    Residency(settings.catalogue, settings.state_dir / "checkpoints", settings.device, settings.resident_models)


if __name__ == "__main__":
    sys.exit(main())
