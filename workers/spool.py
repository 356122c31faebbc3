"""Finished files that are not stored yet, on this machine's disk: a folder for each attempt, `{job id}.{fence}`.

A video is encoded into its folder, and a description (`about.json`, written last) makes the folder whole. From then on
this machine never makes the video again: who claims the job next takes the folder over, by renaming it to its own
fence, so that one attempt alone has it. Knows neither Redis nor the storage.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog

from polyreel.errors import StorageFull
from polyreel.job import Output, VideoJob, attempt_key

log = structlog.get_logger()

_ABOUT = "about.json"


@dataclass(frozen=True)
class Spooled:
    """The files of one video, and what its record will say of it.

    Args:
        folder: where they lie.
        names: of the files, in the order of the job's outputs.
        outputs: the same files as they will be in the storage.
        facts: the receipt, plain JSON.
        timings: seconds per stage so far.
        resumed_from, not_resumable: as in `VideoJob`.
    """

    folder: Path
    names: tuple[str, ...]
    outputs: tuple[Output, ...]
    facts: dict[str, Any]  # Any: JSON
    timings: dict[str, float]
    resumed_from: int
    not_resumable: str

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [self.folder / name for name in self.names]


@dataclass(frozen=True)
class Spool:
    """The folders of one machine; workers of one `state_dir` share them.

    Args:
        folder: of all of them, on a local disk; made when it is needed.
    """

    folder: Path

    @cached_property
    def machine(self) -> str:
        """Id of whoever shares these folders, made when it is first asked for; "" where that is not possible."""
        path, draft = self.folder.with_name("machine-id"), self.folder.with_name(f".machine-id.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                draft.write_text(uuid.uuid4().hex)
                with suppress(FileExistsError):  # another worker was quicker
                    os.link(draft, path)
                draft.unlink()
            return path.read_text().strip()
        except OSError as err:
            log.warning("machine has no id", reason=str(err))
            return ""

    def begin(self, job_id: str, fence: int) -> Path:
        """Return an empty folder for the files of an attempt.

        Raises:
            StorageFull: the disk is full.
        """
        folder = self.folder / f"{job_id}.{fence}"
        with full_disk("The files of the video could not be made"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        return folder

    def keep(self, spooled: Spooled) -> None:
        """Make a folder whole: from here on the video is not made again.

        Raises:
            StorageFull: the disk is full.
        """
        about = asdict(replace(spooled, folder=Path())) | {"folder": ""}
        draft = spooled.folder / f".{_ABOUT}"
        with full_disk("The files of the video could not be made"), draft.open("w", encoding="utf-8") as file:
            json.dump(about, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(spooled.folder / _ABOUT)

    def take(self, job: VideoJob, fence: int) -> Spooled | None:
        """Return what an earlier attempt at a job left here, now this attempt's; None when it left nothing whole."""
        mine = self.folder / f"{job.id}.{fence}"
        for found in sorted(self.folder.glob(f"{job.id}.*"), key=_fence_of, reverse=True):
            if _fence_of(found) >= fence or not (found / _ABOUT).exists():
                continue
            try:
                found.rename(mine)
                spooled = _read(mine, job, fence)
            except (OSError, ValueError, TypeError, KeyError) as err:  # taken by another, or cut off by a power failure
                log.warning("spooled files not used", job_id=job.id, reason=str(err))
                continue
            self.keep(spooled)
            return spooled
        return None

    def remove(self, job_id: str, fence: int) -> None:
        """Forget the files of an attempt; nothing happens where there are none."""
        shutil.rmtree(self.folder / f"{job_id}.{fence}", ignore_errors=True)

    def sweep(self, is_over: Callable[[Sequence[str]], list[bool]]) -> int:
        """Remove the folders of jobs that need them no more; return how many went.

        Args:
            is_over: says of job ids whether each has ended or is gone.
        """
        found = [path for path in self.folder.glob("*.*") if _fence_of(path) >= 0]
        removed = 0
        for path, over in zip(found, is_over([path.name.partition(".")[0] for path in found]), strict=True):
            if over:
                shutil.rmtree(path, ignore_errors=True)
                removed += 1
        return removed


def spool_beside(scratch: Path) -> Spool:
    """Return the spool of a worker whose files in the making lie in `scratch`."""
    return Spool(scratch.with_name("spool"))


@contextmanager
def full_disk(what: str) -> Iterator[None]:
    """Turn the system's word for a full disk into ours."""
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{what}: {err.strerror}.") from err
        raise


def sha256(path: Path) -> str:
    """Return the digest of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fence_of(path: Path) -> int:
    """Return the fence in a folder's name, -1 for one that is not ours."""
    with suppress(ValueError):
        return int(path.name.partition(".")[2])
    return -1


def _read(folder: Path, job: VideoJob, fence: int) -> Spooled:
    """Read a folder back, as what this attempt stores.

    Raises:
        ValueError: a file is not what the description says, which was on disk before it.
    """
    about = json.loads((folder / _ABOUT).read_text("utf-8"))
    keys = [attempt_key(key, fence) for key in job.output_keys]
    outputs = tuple(Output(**(said | {"key": key})) for said, key in zip(about["outputs"], keys, strict=True))
    spooled = Spooled(**(about | {"folder": folder, "names": tuple(about["names"]), "outputs": outputs}))
    for path, output in zip(spooled.paths, outputs, strict=True):
        if sha256(path) != output.sha256:
            raise ValueError(f"{path.name} is damaged")
    return spooled
