"""From the checkpoint of a catalogue entry to a folder or file on this machine. Never downloads.

    shipped:atelier                      comes with Polyreel, trained; see `models.atelier`
    tiny:ltx                             built on the spot, random weights
    /data/wan  ./wan  ~/wan              a folder, used as it is
    /data/sushi.safetensors              a single file, likewise
    OWNER/NAME  hub:OWNER/NAME           a repository in the cache of huggingface_hub (HF_HOME)
    OWNER/NAME/FILE.safetensors          one file of it (or one folder: OWNER/NAME/FOLDER)

Which commit of a repository is used: the entry's `revision`, else what `polyreel pull` pinned on this machine, else
what the cache calls main. Does not know what is inside a folder; a family's `check` and `load` see to that.

Source: the layout of the cache, https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from models import Checkpoint
from models.atelier import SHIPPED
from models.tiny import TINY, build, layout_version
from models.tiny.adapters import ADAPTERS
from polyreel.entries import Part, ServedModel
from polyreel.errors import CheckpointUnavailable, did_you_mean
from polyreel.pins import Pins

_NAME = re.compile(r"\w[\w.-]*")  # of an owner or a repository
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubPath:
    """A repository on the hub, or a file or folder inside it.

    Args:
        repository: "OWNER/NAME".
        inside: path of the file or folder, "" for the whole repository.
    """

    repository: str
    inside: str = ""

    def __str__(self) -> str:
        return f"{self.repository}/{self.inside}" if self.inside else self.repository

    @property
    def cache(self) -> Path:
        """Where huggingface_hub keeps the repository; need not exist."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{self.repository.replace('/', '--')}"


def hub_path(checkpoint: str) -> HubPath | None:
    """Return what a checkpoint means on the hub, None when it is tiny, on this machine, or no name at all."""
    explicit = checkpoint.startswith("hub:")
    if not explicit and (checkpoint.startswith(("shipped:", "tiny:")) or Path(checkpoint).expanduser().exists()):
        return None
    owner, _, rest = checkpoint.removeprefix("hub:").partition("/")
    name, _, inside = rest.partition("/")
    steps = inside.split("/") if inside else []
    if not _NAME.fullmatch(owner) or not _NAME.fullmatch(name) or any(step in ("", ".", "..") for step in steps):
        return None
    return HubPath(f"{owner}/{name}", inside)


def locate(checkpoint: str, revision: str | None, folder: Path) -> Path:
    """Return the local folder or single safetensors file of a checkpoint.

    Args:
        checkpoint: as in the catalogue, one of the forms above.
        revision: branch, tag or commit of a hub repository, None for what is pinned; other forms ignore it.
        folder: where tiny checkpoints are built and the pins are kept.

    Raises:
        CheckpointUnavailable: it is not on this machine; the message names the command that fetches it.
    """
    if checkpoint.startswith("shipped:"):
        return _shipped(checkpoint.removeprefix("shipped:"))
    if checkpoint.startswith("tiny:"):
        name, _, inside = checkpoint.removeprefix("tiny:").partition("/")
        return build(name, folder) / inside
    hub = hub_path(checkpoint)
    if hub is not None:
        return _only_safetensors(_in_cache(hub, revision, folder))
    local = Path(checkpoint).expanduser()
    if not local.exists():
        raise CheckpointUnavailable(
            f"There is no folder or file {checkpoint}; a checkpoint is a folder, a .safetensors file, shipped:NAME, "
            "tiny:NAME, or OWNER/NAME or OWNER/NAME/FILE.safetensors on the hub."
        )
    return _only_safetensors(local)


def _shipped(name: str) -> Path:
    if name not in SHIPPED:
        raise CheckpointUnavailable(
            f"Polyreel ships no checkpoint {name!r}.{did_you_mean(name, SHIPPED)} It ships: {', '.join(SHIPPED)}."
        )
    if not SHIPPED[name].exists():
        raise CheckpointUnavailable(f"{SHIPPED[name]} is missing, which ships with Polyreel; install it again.")
    return SHIPPED[name]


def locate_file(checkpoint: str, revision: str | None, folder: Path) -> Path:
    """Return one safetensors file: "shipped:NAME", "tiny:NAME", a path, or "OWNER/NAME/FILE.safetensors" of the hub.

    Raises:
        CheckpointUnavailable: it is not on this machine, with the command that fetches it; or it is a folder.
    """
    path = locate(checkpoint, revision, folder)
    # What a tiny adapter is, file or folder, is the builder's business.
    if path.is_dir() and not checkpoint.startswith("tiny:"):
        raise CheckpointUnavailable(
            f"{checkpoint} is a folder, and one file is needed here: name the .safetensors file in it."
        )
    return path


def revision_of(checkpoint: str, revision: str | None, folder: Path) -> str:
    """Return the commit of a hub repository that `locate` uses, "" for other forms and when none is here.

    Args: as for `locate`.
    """
    hub = hub_path(checkpoint)
    return (_commit(hub, revision, folder) or "") if hub else ""


def is_made(checkpoint: str, folder: Path) -> bool:
    """Return False for a tiny checkpoint that `locate` would have to build first, which takes seconds; else True."""
    name = checkpoint.removeprefix("tiny:").partition("/")[0]
    if not checkpoint.startswith("tiny:") or name not in (*TINY, *ADAPTERS):
        return True
    return any((folder / f"{name}-{layout_version()}{ending}").exists() for ending in ("", ".safetensors"))


def part_reference(part: Part) -> str:
    """Return a part of an entry in one of the forms above, its `file` included."""
    return f"{part.checkpoint}/{part.file}" if part.file else part.checkpoint


def checkpoint_of(entry: ServedModel, folder: Path) -> Checkpoint:
    """Return what an entry's family is to load.

    Args:
        folder: as for `locate`.

    Raises:
        CheckpointUnavailable: a part of it is not on this machine.
    """
    return Checkpoint(
        path=locate(entry.checkpoint, entry.revision, folder),
        name=entry.checkpoint,
        revision=revision_of(entry.checkpoint, entry.revision, folder),
        parts={role: locate(part_reference(part), part.revision, folder) for role, part in entry.parts.items()},
        part_names={role: part_reference(part) for role, part in entry.parts.items()},
        scheduler=entry.scheduler,
        attention=entry.attention,
        step_cache=entry.step_cache,
        audio=entry.audio,
        native=entry.native,
    )


def _in_cache(hub: HubPath, revision: str | None, folder: Path) -> Path:
    # By hand, not by snapshot_download(local_files_only=True): that one refuses a snapshot without the files that
    # nobody needs (pickles, fp16 copies) as soon as any other tool has left a listing of the repository.
    commit = _commit(hub, revision, folder)
    path = hub.cache / "snapshots" / commit / hub.inside if commit else None
    if path is None or not path.exists():
        at = f" at {revision}" if revision else ""
        raise CheckpointUnavailable(
            f"{hub}{at} is not on this machine (looked in {hub.cache.parent}); fetch it with: polyreel pull {hub}"
        )
    return path


def _commit(hub: HubPath, revision: str | None, folder: Path) -> str | None:
    pinned = Pins(folder).get(hub.repository, revision)
    if pinned:
        return pinned
    if revision and _COMMIT.fullmatch(revision):
        return revision
    try:
        return (hub.cache / "refs" / (revision or "main")).read_text("utf-8").strip() or None
    except OSError:
        return None


def _only_safetensors(path: Path) -> Path:
    if path.is_file() and path.suffix != ".safetensors":
        raise CheckpointUnavailable(
            f"{path} is not a .safetensors file; others may run code when they are read. Convert it to safetensors."
        )
    return path
