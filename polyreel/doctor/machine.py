"""Checks of the machine itself: Python, its packages, the state folder, and space on the disk."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from polyreel.doctor import Finding, Patient

#: Oldest Python that this runs on.
_PYTHON = (3, 11)

#: A disk with less than this many times `min_free_mb` will not last long.
_TIGHT = 5

#: A line of what a package requires. Source: PEP 508.
_WANTED = re.compile(r"(?P<name>[\w.-]+)(\[.*?\])?(==(?P<pin>[\w.]+)|[^;]*)(; extra == .(?P<extra>\w+).)?")

#: Secrets in the state folder.
_SECRETS = ("link-secret", "pepper", "local-pepper", "webhook-secret", "local-key.json")


def python(_: Patient) -> Finding:
    """Python is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _PYTHON:
        return Finding("fail", f"This is Python {found}.", "Install Python 3.11 or newer, and polyreel into it.")
    return Finding("ok", f"Python {found} at {sys.executable}")


def packages(patient: Patient) -> Finding:
    """What is installed is what this version was tested with; of the worker's extra, where a worker is installed."""
    extra = "worker" if "torch" in patient.seen.get("libraries", {}) else ""
    wrong, missing = [], []
    for text in requires("polyreel") or ():
        wanted = _WANTED.match(text)
        if wanted is None or wanted["extra"] not in (None, extra):
            continue
        try:
            found = version(wanted["name"])
        except PackageNotFoundError:
            missing.append(wanted["name"])
            continue
        if wanted["pin"] and found != wanted["pin"]:
            wrong.append(f"{wanted['name']} {found} ({wanted['pin']} is tested)")
    install = f"pip install 'polyreel{'[worker]' if extra else ''}'"
    if missing:
        return Finding("fail", f"Not installed: {', '.join(missing)}.", install)
    if wrong:
        return Finding("warn", f"Other versions than the tested ones: {', '.join(wrong)}.", install)
    return Finding("ok", "all packages are those that this version was tested with")


def state_folder(patient: Patient) -> Finding:
    """Files can be written where the queue, the secrets and the results are."""
    folder = patient.settings.state_dir
    elsewhere = "Let this user write there, or choose another: --state-dir DIR or POLYREEL_STATE_DIR."
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as probe:
            probe.write(b"polyreel doctor")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as err:
        return Finding("fail", f"state_dir: cannot write to {folder}: {err.strerror}.", elsewhere)
    return Finding("ok", f"{folder} can be written to")


def secret_files(patient: Patient) -> Finding:
    """Nobody else can read the secrets."""
    folder = patient.settings.state_dir
    files = [path for path in (folder / name for name in _SECRETS) if path.exists()]
    open_ones = [path for path in files if path.stat().st_mode & 0o077]
    foreign = [path for path in files if not os.access(path, os.R_OK)]
    if foreign:
        names = " ".join(map(str, foreign))
        return Finding("fail", f"This user cannot read {names}.", f"Start as its owner, or: chown $(id -u) {names}")
    if open_ones:
        names = " ".join(map(str, open_ones))
        return Finding("fail", f"Other users of this machine can read {names}.", f"chmod 600 {names}")
    return Finding("ok", f"{len(files)} in {folder}, readable by their owner alone" if files else "none are made yet")


def disk(patient: Patient) -> Iterator[Finding]:
    """There is space for checkpoints, for files in the making, and for weights."""
    least = patient.settings.min_free_mb * 1e6
    for of, folder in (("state_dir", patient.settings.state_dir), ("HF_HOME", _hub_folder())):
        free = shutil.disk_usage(_existing(folder)).free
        says = f"{free / 1e9:.1f} GB are free at {folder}"
        if free < least:
            fix = (
                f"Free some, or put {of} on another disk; below min_free_mb ({least / 1e6:g} MB) no jobs are taken."
                if of == "state_dir"
                else "Free some, or set HF_HOME to a folder on another disk."
            )
            yield Finding("fail", f"{says}.", fix, of)
        elif free < _TIGHT * least:
            yield Finding("warn", f"{says}, little more than min_free_mb ({least / 1e6:g} MB).", "Free some.", of)
        else:
            yield Finding("ok", says, of=of)


def _hub_folder() -> Path:
    """Return where `polyreel pull` puts weights. Source: huggingface_hub, "Environment variables"."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface")


def _existing(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists already."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
