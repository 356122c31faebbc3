"""One repository on the hub, as `polyreel pull` reads it: a commit, its files, and their bytes in the local cache.

Files land in the cache of huggingface_hub (HF_HOME), in its own layout, so that everything else that reads that cache
finds them. The bytes are fetched here and not by `hf_hub_download`, for two reasons: that one (2.4) deletes what it
has of a file when it is interrupted, and 20 GB would start over; and here nothing is in the cache under its name
before its checksum is right. Nothing of a repository is ever run.

Sources: https://huggingface.co/docs/huggingface_hub/guides/manage-cache (layout);
https://huggingface.co/docs/hub/api (endpoints)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

# Exported lazily, which mypy does not see.
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    get_token,
    hf_raise_for_status,
)

from models.checkpoints import HubPath
from polyreel.errors import CheckpointUnavailable

#: Attempts without a single new byte before a download is given up, and seconds between them.
_ATTEMPTS, _PAUSE_S = 5, 1.0

#: Answers that are worth another attempt.
_RETRIED = (408, 429, 500, 502, 503, 504)

_CHUNK = 1 << 20

#: Called with the number of bytes that have arrived; negative when some had to be thrown away.
OnBytes = Callable[[int], None]


class Stopped(Exception):
    """Raised in a download when another one failed or the user has had enough; what is there stays for next time."""


@dataclass(frozen=True)
class HubFile:
    """One file of a commit.

    Args:
        path: inside the repository.
        size: bytes.
        digest: sha256 of a large file, git's sha1 of a small one; also its name among the cache's blobs.
    """

    path: str
    size: int
    digest: str

    def matches(self, file: Path) -> bool:
        """Return whether a file on this machine has exactly these bytes; reads all of it."""
        if file.stat().st_size != self.size:
            return False
        if len(self.digest) == 64:
            hasher = hashlib.sha256()
        else:  # a git object, which is hashed with a header
            hasher = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with file.open("rb") as content:
            while chunk := content.read(_CHUNK):
                hasher.update(chunk)
        return hasher.hexdigest() == self.digest


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit.

    Args:
        hub: the repository.
        commit: 40 hex digits.
        files: by path.
        licence_url: where gated weights are unlocked, for messages.
    """

    hub: HubPath
    commit: str
    files: dict[str, HubFile]
    licence_url: str = ""

    def local(self, file: HubFile) -> Path:
        """Where the file is, or will be."""
        return self.hub.cache / "snapshots" / self.commit / file.path

    def _blob(self, file: HubFile) -> Path:
        return self.hub.cache / "blobs" / file.digest

    def _partial(self, file: HubFile) -> Path:
        # A name of our own: huggingface_hub clears away what it finds under its names.
        return self.hub.cache / "blobs" / f"{file.digest}.polyreel.incomplete"

    def has(self, file: HubFile) -> bool:
        """Return whether the file is here, as long as it should be."""
        local = self.local(file)
        return local.is_file() and local.stat().st_size == file.size

    def discard_if_damaged(self, file: HubFile) -> None:
        """Take a file away that is here with other bytes than it should have; reads all of it."""
        if self.has(file) and not file.matches(self.local(file)):
            self.local(file).unlink()
            self._blob(file).unlink(missing_ok=True)

    def missing_bytes(self, file: HubFile) -> int:
        """Return what is still to be fetched of a file that is not here."""
        partial = self._partial(file)
        have = partial.stat().st_size if partial.is_file() else 0
        return file.size - min(have, file.size)

    def fetch(self, file: HubFile, on_bytes: OnBytes, stop: Event) -> None:
        """Bring one file into the cache, going on where an earlier attempt ended, and verify it.

        Raises:
            CheckpointUnavailable: it cannot be had, or what came is not what the hub announced.
            Stopped: `stop` was set.
        """
        with explained(self.hub, self.licence_url), self._locked(file):
            blob, partial = self._blob(file), self._partial(file)
            if blob.is_file() and file.matches(blob):  # of another commit, or fetched by whoever held the lock
                on_bytes(self.missing_bytes(file))
                partial.unlink(missing_ok=True)
            else:
                with partial.open("ab") as part:
                    self._download(file, part, on_bytes, stop)
                if not file.matches(partial):
                    partial.unlink()
                    raise CheckpointUnavailable(
                        f"{self.hub.repository}: {file.path} arrived with other bytes than the hub announces "
                        f"({file.digest[:12]}…) and was thrown away; run this again. If it happens twice, a proxy or "
                        "mirror on the way changes files."
                    )
                partial.replace(blob)
            self._link(file)

    @contextmanager
    def _locked(self, file: HubFile) -> Iterator[None]:
        """Keep others from fetching the same file; huggingface_hub takes the same lock."""
        lock = self.hub.cache.parent / ".locks" / self.hub.cache.name / f"{file.digest}.lock"
        for folder in (lock.parent, self._blob(file).parent):
            folder.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # released by the kernel when the holder dies
            yield

    def _download(self, file: HubFile, part: Any, on_bytes: OnBytes, stop: Event) -> None:
        """Append to `part` until it has the whole file."""
        url = hf_hub_url(self.hub.repository, file.path, revision=self.commit)
        failures = 0
        while (have := part.tell()) < file.size:
            try:
                # identity: a compressed answer has no ranges. The session follows the redirect to the storage host
                # and leaves the token behind.
                headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
                if have:
                    headers["Range"] = f"bytes={have}-"
                with get_session().stream("GET", url, headers=headers, timeout=10) as response:
                    if response.status_code in _RETRIED and failures < _ATTEMPTS:
                        raise httpx2.RemoteProtocolError(f"HTTP {response.status_code}")
                    hf_raise_for_status(response)
                    if response.status_code != 206 and have:  # the range was ignored: from the start, then
                        part.truncate(0)
                        on_bytes(-have)
                    for chunk in response.iter_raw():
                        if stop.is_set():
                            raise Stopped
                        part.write(chunk)
                        part.flush()
                        on_bytes(len(chunk))
                        failures = 0
                if part.tell() < file.size:
                    raise httpx2.RemoteProtocolError("the answer ended early")
            except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError):
                failures += 1
                if failures > _ATTEMPTS:
                    raise
                if stop.wait(_PAUSE_S):
                    raise Stopped from None
        if part.tell() > file.size:
            part.truncate(0)
            raise CheckpointUnavailable(f"{self.hub.repository}: {file.path} is longer than the hub says; run again.")

    def _link(self, file: HubFile) -> None:
        """Give the blob its name in the snapshot."""
        local, blob = self.local(file), self._blob(file)
        local.parent.mkdir(parents=True, exist_ok=True)
        local.unlink(missing_ok=True)
        try:
            local.symlink_to(os.path.relpath(blob, local.parent))
        except OSError:  # a file system without symlinks; huggingface_hub does the same
            blob.replace(local)

    def read_json(self, path: str) -> Any:
        """Return the content of a JSON file, fetching it when it is not here."""
        file = self.files[path]
        if not self.has(file):
            self.fetch(file, lambda count: None, Event())
        try:
            return json.loads(self.local(file).read_text("utf-8"))
        except ValueError as err:
            raise CheckpointUnavailable(f"{self.hub.repository}: {path} is not JSON on the hub.") from err

    def remember(self, revision: str | None, *, replace: bool) -> None:
        """Let the cache itself say that a branch or tag means this commit, for whoever has no pin.

        Args:
            revision: branch or tag, None for main; nothing happens for a commit.
            replace: also when the cache says something already.
        """
        ref = self.hub.cache / "refs" / (revision or "main")
        if revision == self.commit or (ref.exists() and not replace):
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        draft = ref.with_name(f".{ref.name}.{os.getpid()}")
        draft.write_text(self.commit)
        draft.replace(ref)


def look_up(hub: HubPath, revision: str | None, pinned: str | None, licence_url: str = "") -> Snapshot:
    """Ask the hub for a repository: the pinned commit, or the one that a revision means today, and its files.

    Args:
        revision: branch, tag or commit; None is main.
        pinned: a commit that is taken whatever `revision` means today.
        licence_url: where gated weights are unlocked, "" for the repository's own page.

    Raises:
        CheckpointUnavailable: no such repository or revision, no access, or no connection; says what to do.
    """
    with explained(hub, licence_url, None if pinned else revision):
        api = HfApi()
        commit = api.model_info(hub.repository, revision=pinned or revision, timeout=30).sha
        if not commit or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise CheckpointUnavailable(f"{constants.ENDPOINT} names no commit for {hub.repository}; is it a hub?")
        listed = api.list_repo_tree(hub.repository, recursive=True, revision=commit)
        files = [_file(entry) for entry in listed if isinstance(entry, RepoFile)]
    return Snapshot(hub, commit, {file.path: file for file in files}, licence_url)


def _file(entry: RepoFile) -> HubFile:
    digest = entry.lfs.sha256 if entry.lfs else entry.blob_id
    size = entry.lfs.size if entry.lfs else entry.size
    # These become paths on this machine.
    if (
        not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest)
        or ".." in Path(entry.path).parts
        or entry.path[:1] == "/"
    ):
        raise CheckpointUnavailable(f"The hub lists a file that cannot be: {entry.path!r}")
    return HubFile(entry.path, size, digest)


@contextmanager
def explained(hub: HubPath, licence_url: str = "", revision: str | None = None) -> Iterator[None]:
    """Turn what goes wrong on the way to the hub into one line that says what to do. Never contains the token."""
    name, page = hub.repository, licence_url or f"https://huggingface.co/{hub.repository}"
    readable = "a token with read access (https://huggingface.co/settings/tokens)"
    try:
        yield
    except GatedRepoError as err:
        raise CheckpointUnavailable(
            f"{name} is gated, and the account of your token has no access yet: accept its licence at {page} with "
            "that account, then run this again."
            if get_token()
            else f"{name} is gated: accept its licence at {page}, set HF_TOKEN to {readable}, and run this again."
        ) from err
    except RevisionNotFoundError as err:
        raise CheckpointUnavailable(
            f"{name} has no revision {revision}; see {page}/commits for those that it has."
            if revision
            else f"{name} no longer has the commit that is pinned here; take today's with --update."
        ) from err
    except RepositoryNotFoundError as err:
        raise CheckpointUnavailable(
            f"{name} does not exist on {constants.ENDPOINT}, or it is private; for a private one set HF_TOKEN to "
            f"{readable} of an account that may read it."
        ) from err
    except RemoteEntryNotFoundError as err:
        raise CheckpointUnavailable(f"{name} lost a file while it was read; run this again.") from err
    except HfHubHTTPError as err:
        status, said = err.response.status_code, f" ({err.server_message})" if err.server_message else ""
        raise CheckpointUnavailable(
            f"{constants.ENDPOINT} refuses your token for {name}{said}; set HF_TOKEN to {readable}."
            if status in (401, 403)
            else f"{constants.ENDPOINT} answered {name} with HTTP {status}; run this again later."
        ) from err
    except httpx2.ProxyError as err:
        raise CheckpointUnavailable(
            f"The proxy does not let {constants.ENDPOINT} through ({_first_line(err)}); check HTTPS_PROXY and NO_PROXY."
        ) from err
    except httpx2.TransportError as err:
        raise CheckpointUnavailable(
            f"Cannot reach {constants.ENDPOINT} ({_first_line(err)}); check the network, HTTPS_PROXY, and HF_ENDPOINT "
            "if you use a mirror, then run this again: it goes on where it stopped."
        ) from err
    except OSError as err:
        raise CheckpointUnavailable(
            f"{name} cannot be written to {hub.cache.parent} ({err.strerror or _first_line(err)}); make room or set "
            "HF_HOME to another folder, for the server too."
        ) from err


def _first_line(err: Exception) -> str:
    text = str(err).strip()
    return text.splitlines()[0] if text else type(err).__name__
