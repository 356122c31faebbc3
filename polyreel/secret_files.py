"""Small secrets that the server makes for itself and keeps in its state folder, readable by its user alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def read_or_make(path: Path) -> bytes:
    """Return the 32 bytes kept in `path`, drawing them if the file is not there yet.

    Several processes may call this at once: whoever links its file first wins, and all return the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.touch(mode=0o600, exist_ok=True)
        draft.write_bytes(secrets.token_bytes(32))
        try:
            os.link(draft, path)  # unlike a rename, a link never replaces what another process put there
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_bytes()
