"""From the checkpoint of a catalogue entry to a folder on this machine. Never downloads.

    tiny:ltx                      built on the spot, random weights
    /data/wan  ./wan  ~/wan       a folder, used as it is
    hub:OWNER/NAME  OWNER/NAME    looked up in the cache of huggingface_hub (HF_HOME)

Does not know what is inside a folder; a family's `load` checks that.
"""

from __future__ import annotations

from pathlib import Path

from models.tiny import build
from polyreel.errors import CheckpointUnavailable


def locate(checkpoint: str, revision: str | None, folder: Path) -> Path:
    """Return the local folder of a checkpoint.

    Args:
        checkpoint: as in the catalogue, one of the forms above.
        revision: branch, tag or commit of a hub repository, None for its main branch; other forms ignore it.
        folder: where tiny checkpoints are built.

    Raises:
        CheckpointUnavailable: it is not on this machine; the message names the command that fetches it.
    """
    if checkpoint.startswith("tiny:"):
        return build(checkpoint.removeprefix("tiny:"), folder)
    if checkpoint.startswith("hub:"):
        return _cached(checkpoint.removeprefix("hub:"), revision)
    local = Path(checkpoint).expanduser()
    if local.is_dir():
        return local
    # Exactly one slash between two names is what a repository looks like; anything else was meant as a path.
    if checkpoint.count("/") == 1 and not checkpoint.startswith(("/", ".", "~")) and not checkpoint.endswith("/"):
        return _cached(checkpoint, revision)
    raise CheckpointUnavailable(
        f"There is no folder {checkpoint}; a checkpoint is a folder, tiny:NAME, or OWNER/NAME on the hub."
    )


def locate_file(checkpoint: str, revision: str | None, folder: Path) -> Path:
    """Return one safetensors file: "tiny:NAME", a local path, or "OWNER/NAME/FILE" in the cache of the hub.

    Raises:
        CheckpointUnavailable: it is not on this machine; the message names the command that fetches it.
    """
    if checkpoint.startswith("tiny:"):
        return build(checkpoint.removeprefix("tiny:"), folder)
    local = Path(checkpoint).expanduser()
    if local.is_file():
        return local
    parts = checkpoint.removeprefix("hub:").split("/")
    if len(parts) >= 3 and not checkpoint.startswith(("/", ".", "~")):
        path = _cached("/".join(parts[:2]), revision) / "/".join(parts[2:])
        if path.is_file():
            return path
    raise CheckpointUnavailable(
        f"There is no file {checkpoint}; give a .safetensors file, tiny:NAME, or OWNER/NAME/FILE on the hub."
    )


def _cached(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as err:
        fetch = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        raise CheckpointUnavailable(
            f"{repository} is not in the Hugging Face cache of this machine; fetch it with: {fetch}"
        ) from err
    except HFValidationError as err:
        raise CheckpointUnavailable(f"{repository!r} is not a repository name of the form OWNER/NAME.") from err
