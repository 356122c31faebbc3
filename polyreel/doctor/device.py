"""Checks of what a worker computes with: driver, CUDA and torch, the GPU's memory, the weights, and ffmpeg."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from polyreel.admission import RESERVED_BYTES, Size, least, memory_bytes
from polyreel.doctor import Finding, Patient
from polyreel.entries import ServedModel
from polyreel.gpus import GpusUnknown, installed_gpus

_INSTALL = "Install the worker where it is to run: pip install 'polyreel[worker]' (or make install)."

#: Encoders of ffmpeg, and what cannot be made without one.
_ENCODERS = {
    "libx264": "mp4",
    "aac": "mp4 with sound",
    "libvpx-vp9": "webm",
    "libopus": "webm with sound",
    "gif": "gif",
}

#: What `polyreel models` says of an entry that does not run.
_STATES = {"broken": "fail", "missing": "fail", "downloadable": "warn"}


def cuda(patient: Patient) -> Finding:
    """torch can use the GPUs that are here."""
    if unseen := _unseen(patient, "torch"):
        return unseen
    facts, device = patient.seen["torch"], patient.settings.device
    try:
        gpus = installed_gpus()
    except GpusUnknown as err:
        return Finding(
            "fail", str(err), "Install NVIDIA's driver again, or restart; then nvidia-smi -L lists the GPUs."
        )
    if device in ("cpu", "mps") or patient.settings.gpus == "none":
        chosen = f"device: {device}, gpus: {patient.settings.gpus}"
        if gpus:
            fix = "If that is not meant: --config gpu, or device: auto and gpus: all."
            return Finding("warn", f"{len(gpus)} GPUs are here, and {chosen} uses none of them.", fix)
        return Finding("ok", f"torch {facts['version']} on the CPU ({chosen})")
    if not gpus and not facts["devices"]:
        if device == "auto":
            return Finding("ok", f"no GPU is here; torch {facts['version']} runs on the CPU (device: auto)")
        fix = "Install NVIDIA's driver so that nvidia-smi -L lists a GPU, or set device: cpu."
        return Finding("fail", f"device: {device} was asked for, and no GPU is here.", fix)
    if facts["cuda"] is None:
        # -B, for without it make sees that it has installed one; PyPI has no version of this name.
        fix = (
            'Install a CUDA build of it: make -B install TORCH="torch==2.13.0+cu130 --index-url ADDRESS", with the '
            "address that pytorch.org/get-started shows."
        )
        return Finding("fail", f"{len(gpus)} GPUs are here, and torch {facts['version']} was built without CUDA.", fix)
    if not facts["devices"]:
        fix = f"Update NVIDIA's driver to one for CUDA {facts['cuda']}, or install a torch built for an older CUDA."
        return Finding("fail", f"torch {facts['version']} cannot use the GPU: {facts['trouble']}.", fix)
    strange = [gpu for gpu in facts["devices"] if not _runs_on(gpu["arch"], facts["archs"])]
    if strange:
        names = ", ".join(f"{gpu['name']} ({gpu['arch']})" for gpu in strange)
        fix = "Install a torch that was built for it: pytorch.org/get-started."
        return Finding("fail", f"torch {facts['version']} has no code for {names}: {', '.join(facts['archs'])}.", fix)
    names = ", ".join(gpu["name"] for gpu in facts["devices"])
    return Finding("ok", f"torch {facts['version']}, CUDA {facts['cuda']}: {names}")


def memory(patient: Patient) -> Iterator[Finding]:
    """Every model's default video fits into the largest GPU."""
    if unseen := _unseen(patient, "torch"):
        yield unseen
        return
    sizes = [gpu["memory_bytes"] for gpu in patient.seen["torch"]["devices"]]
    if not sizes or patient.settings.device in ("cpu", "mps"):
        yield Finding("ok", "not counted on the CPU")
        return
    for name, entry in patient.settings.models.items():
        yield _fits(name, entry, max(sizes))


def _fits(name: str, entry: ServedModel, device_bytes: int) -> Finding:
    default = entry.defaults
    size = Size(default.num_frames, default.height, default.width)
    resident = memory_bytes(entry, size, entry.placement) + RESERVED_BYTES
    needed = memory_bytes(entry, size, least(entry.placement)) + RESERVED_BYTES
    has = f"{device_bytes / 1e9:.1f} GB"
    if not entry.cost.weights_gb:
        return Finding("ok", "what it takes is not known (cost), so every size is tried", of=name)
    if needed > device_bytes:
        return Finding(
            "fail",
            f"{size} take {needed / 1e9:.1f} GB at least, and the largest GPU has {has}.",
            f"Lower models.{name}.defaults, take a smaller model, or a larger GPU.",
            name,
        )
    if resident > device_bytes:
        fix = "Nothing has to be done: its weights move to and fro, which is slower. A larger GPU holds all of it."
        return Finding("warn", f"{size} fit into {has} only with weights kept in the CPU's memory.", fix, name)
    return Finding("ok", f"{size} take {resident / 1e9:.1f} GB of {has}", of=name)


def weights(patient: Patient) -> Iterator[Finding]:
    """The weights of every entry of the catalogue are here and can be loaded."""
    if unseen := _unseen(patient, "weights"):
        yield unseen
        return
    rows = patient.seen["weights"]
    ready = [row["name"] for row in rows if row["state"] == "ready"]
    for row in rows:
        status: Any = _STATES.get(row["state"])
        if status:
            fix = row["fix"] or f"Mend or remove {row['name']} in the catalogue; polyreel models says more."
            yield Finding(status, f"{row['state']}: {row['detail']}", fix, row["name"])
    if ready:
        yield Finding("ok", f"ready: {', '.join(ready)}")


def ffmpeg(patient: Patient) -> Finding:
    """ffmpeg is here and can write every format."""
    if unseen := _unseen(patient, "ffmpeg"):
        return unseen
    found = patient.seen["ffmpeg"]
    lacking = [f"{encoder} ({of})" for encoder, of in _ENCODERS.items() if encoder not in found["encoders"]]
    if lacking:
        fix = "Unset IMAGEIO_FFMPEG_EXE to use the one of imageio-ffmpeg, or install an ffmpeg that has them."
        return Finding("fail", f"{found['program']} lacks {', '.join(lacking)}.", fix)
    return Finding("ok", f"{found['program']} has {', '.join(_ENCODERS)}")


def _unseen(patient: Patient, part: str) -> Finding | None:
    """Return why nothing is known of a part, None when it is."""
    if patient.no_look:
        return Finding("fail", f"The worker's libraries could not be asked: {patient.no_look}.", _INSTALL)
    if part in ("torch", "ffmpeg", "weights") and not patient.seen.get("libraries", {}).get("torch"):
        return Finding(
            "warn", "No worker is installed here (torch is missing), so this machine serves the API alone.", _INSTALL
        )
    error = patient.seen[part].get("error") if isinstance(patient.seen[part], dict) else None
    if error is None:
        return None
    fix = "Unset IMAGEIO_FFMPEG_EXE, or name an ffmpeg in it that runs." if part == "ffmpeg" else _INSTALL
    return Finding("fail", f"{part}: {error}", fix)


def _runs_on(arch: str, built: list[str]) -> bool:
    """Return whether code for a GPU was built: for one of its major version, or as PTX for any older one.

    Source: CUDA C++ Programming Guide, "Binary Compatibility".
    """
    wanted = int(arch.removeprefix("sm_"))
    for one in built:
        kind, _, digits = one.partition("_")
        number = int(re.sub(r"\D", "", digits))  # sm_90a
        if number <= wanted and (kind == "compute" or number // 10 == wanted // 10):
            return True
    return not built
