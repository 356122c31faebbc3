"""Which commit of each hub repository runs on this machine: `pins.json`, written by `polyreel pull`, read by workers.

    {"Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "0fad780a…", "somebody/video@v2": "9c1d77e0…"}

A pin is written only when everything that an entry needs of that commit is here and verified, so what a worker loads
never changes because a branch on the hub moved. Does not know where the files are.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from polyreel.errors import CheckpointUnavailable


@dataclass(frozen=True)
class Pins:
    """The pins of one machine.

    Args:
        folder: holds `pins.json`; the folder of the checkpoints in the state folder. Need not exist.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """The file, which need not exist."""
        return self.folder / "pins.json"

    def get(self, repository: str, revision: str | None) -> str | None:
        """Return the pinned commit, None when there is none.

        Args:
            repository: "OWNER/NAME".
            revision: branch, tag or commit that the catalogue asks for; None for the repository's main branch.

        Raises:
            CheckpointUnavailable: the file is damaged.
        """
        return self._read().get(_key(repository, revision))

    def set(self, repository: str, revision: str | None, commit: str) -> None:
        """Pin a commit; whole or not at all, whoever else writes at the same time.

        Raises:
            CheckpointUnavailable: the file is damaged.
            OSError: it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".pins.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when the holder dies
            pins = {**self._read(), _key(repository, revision): commit}
            draft = self.path.with_name(".pins.json.draft")
            with draft.open("w", encoding="utf-8") as file:
                json.dump(pins, file, indent=2, sort_keys=True)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)

    def _read(self) -> dict[str, str]:
        try:
            pins = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as err:
            raise CheckpointUnavailable(
                f"{self.path} cannot be read ({err}); delete it and run polyreel pull again for what you serve."
            ) from err
        if not isinstance(pins, dict) or not all(isinstance(commit, str) for commit in pins.values()):
            raise CheckpointUnavailable(
                f"{self.path} is not a mapping of repositories to commits; delete it and run polyreel pull again."
            )
        return pins


def _key(repository: str, revision: str | None) -> str:
    return f"{repository}@{revision}" if revision else repository
