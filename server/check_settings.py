"""`polyreel config check`, the server's part: what the API checks of its settings at start, without starting it."""

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
    """Check what the API would. Nobody is asked: neither Redis, nor a storage, nor a content policy.

    Raises:
        ConfigurationError: names the setting.
    """
    from polyreel.keys import load_keys
    from polyreel.policy import load_judge
    from polyreel.profiles import load_settings
    from polyreel.storage import connect_storage
    from server.dialects import dialect_settings

    settings = load_settings(config, state_dir=state_dir).settings
    dialect_settings(settings, settings.catalogue)
    connect_storage(settings.storage_url, settings.s3)
    load_judge(settings.content_policy)
    if settings.api_keys or settings.admins:  # else it would make the key of the first start
        load_keys(settings, lambda: True)


if __name__ == "__main__":
    sys.exit(main())
