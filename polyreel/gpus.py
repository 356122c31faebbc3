"""Which GPUs this machine has, and where each worker process runs; learned from `nvidia-smi`, without torch.

The supervisor must stay small and must hold no CUDA context, so it cannot ask torch. A worker is given its GPU by UUID
in CUDA_VISIBLE_DEVICES: an index means another GPU once one has fallen off the bus, a UUID never does.

Source: CUDA C++ Programming Guide, "CUDA Environment Variables"; NVIDIA Multi-Instance GPU User Guide, "Running CUDA
Applications on Bare-Metal" (the form of `nvidia-smi -L` with instances).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from polyreel.errors import ConfigurationError
from polyreel.settings import Settings

#: How long `nvidia-smi` may take, seconds: without persistence mode it wakes every GPU first.
_ASK_S = 60.0

#: The two kinds of lines that `nvidia-smi -L` prints; a MIG instance follows its GPU.
_LISTED = re.compile(r"GPU (?P<gpu>\d+): .*\(UUID: (?P<uuid>[^)\s]+)\)|\s+MIG .*\(UUID: (?P<instance>[^)\s]+)\)")


@dataclass(frozen=True)
class Gpu:
    """One device that a worker can have to itself: a whole GPU, or a MIG instance of one.

    Args:
        name: "gpu0", or "gpu0.1" for the second instance of GPU 0; numbers as `nvidia-smi` counts.
        index: of the GPU, from 0, by PCI bus.
        uuid: what CUDA_VISIBLE_DEVICES takes.
        card: UUID of the whole GPU.
    """

    name: str
    index: int
    uuid: str
    card: str

    def is_meant_by(self, entry: str) -> bool:
        """Return whether an entry of CUDA_VISIBLE_DEVICES or of `gpus` means this one: an index, or a UUID's start."""
        return (
            self.index == int(entry)
            if entry.isdecimal()
            else self.uuid.startswith(entry) or self.card.startswith(entry)
        )


@dataclass(frozen=True)
class Place:
    """Where one worker process runs.

    Args:
        slot: part of the worker's name that stays over restarts, e.g. "gpu0", "gpu0-2" or "1"; unique on a machine.
        environment: variables that its process gets on top of ours.
    """

    slot: str
    environment: Mapping[str, str] = field(default_factory=dict)


class GpusUnknown(ConfigurationError):
    """Raised when `nvidia-smi` is there and does not say which GPUs there are; the message says why."""


def installed_gpus() -> list[Gpu]:
    """Return every GPU of this machine, in the order of its PCI bus; none where there is no `nvidia-smi`.

    Raises:
        GpusUnknown: `nvidia-smi` fails, takes longer than a minute, or prints what we cannot read.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        asked = subprocess.run([program, "-L"], capture_output=True, text=True, errors="replace", timeout=_ASK_S)
    except subprocess.TimeoutExpired:
        raise GpusUnknown(f"{program} -L does not answer within {_ASK_S:g} s.") from None
    except OSError as err:
        raise GpusUnknown(f"{program} cannot be run: {err.strerror}.") from None
    said = f"{asked.stdout}\n{asked.stderr}"
    if "No devices were found" in said:  # exit code 0 or 6, depending on the driver
        return []
    gpus = _parse(asked.stdout)
    if asked.returncode or not gpus:
        words = " ".join(said.split())[:300] or "nothing"
        raise GpusUnknown(f"{program} -L ended with exit code {asked.returncode} and said: {words}")
    return gpus


def _parse(listing: str) -> list[Gpu]:
    cards: list[tuple[int, str, list[str]]] = []
    for line in listing.splitlines():
        found = _LISTED.match(line)
        if found is None:
            continue
        if found["gpu"]:
            cards.append((int(found["gpu"]), found["uuid"], []))
        elif cards:
            cards[-1][2].append(found["instance"])
    gpus = []
    for index, card, instances in cards:
        # A Jetson lists a UUID that CUDA does not take.
        gpus += [] if instances else [Gpu(f"gpu{index}", index, card if card.startswith("GPU-") else str(index), card)]
        gpus += [Gpu(f"gpu{index}.{n}", index, instance, card) for n, instance in enumerate(instances)]
    return gpus


def places(settings: Settings, environment: Mapping[str, str], say: Callable[[str], None]) -> list[Place]:
    """Return where this machine's workers run, `settings.workers` for each of its GPUs, or on no GPU of their own.

    Args:
        settings: of which `gpus`, `workers` and `device` count.
        environment: ours; CUDA_VISIBLE_DEVICES in it hides GPUs.
        say: told what went wrong and was no reason to stop.

    Raises:
        ConfigurationError: a GPU that was asked for is not there, or `gpus` and `device` contradict each other.
    """
    if settings.gpus == "none":
        if settings.device.startswith("cuda"):
            raise ConfigurationError(f"gpus: none, and device: {settings.device} needs one. Change either.")
        shared = [Place("", {"CUDA_VISIBLE_DEVICES": ""})]
    elif settings.device not in ("auto", "cuda"):
        if settings.gpus != "all":
            raise ConfigurationError(
                f"gpus: {settings.gpus} was asked for, and device: {settings.device} means something else. "
                "Set device to auto or cuda, or gpus to all (the default)."
            )
        shared = [Place("")]
    else:
        shared = [_on(gpu) for gpu in _chosen(settings.gpus, environment, say)] or [Place("")]
    return [
        Place(_slot(place.slot, number, settings.workers), place.environment)
        for place in shared
        for number in range(1, settings.workers + 1)
    ]


def _on(gpu: Gpu) -> Place:
    # The order counts for what is told to the children of the worker, and for a Jetson's index.
    return Place(gpu.name, {"CUDA_VISIBLE_DEVICES": gpu.uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})


def _slot(name: str, number: int, of: int) -> str:
    return f"{name}-{number}" if name and of > 1 else name or str(number)


def _chosen(wanted: str, environment: Mapping[str, str], say: Callable[[str], None]) -> list[Gpu]:
    try:
        installed = installed_gpus()
    except GpusUnknown as err:
        if wanted != "all":
            raise ConfigurationError(f"gpus: {wanted} was asked for, and what is here is not known: {err}") from None
        say(f"{err} Starting without counting GPUs; gpus: none says that this is meant.")
        return []
    visible = installed
    hidden_by = ""
    allowed = environment.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None and installed:
        visible = _picked("CUDA_VISIBLE_DEVICES", _until_negative(allowed), installed)
        hidden_by = f" (CUDA_VISIBLE_DEVICES={allowed} hides others)"
    return visible if wanted == "all" else _picked("gpus", wanted.split(","), visible, hidden_by)


def _until_negative(allowed: str) -> list[str]:
    """Return the entries that CUDA heeds: -1 ends the list, and is the usual way to hide all."""
    entries = [entry.strip() for entry in allowed.split(",")]
    end = next((n for n, entry in enumerate(entries) if entry in ("", "NoDevFiles") or entry.startswith("-")), None)
    return entries[:end]


def _picked(setting: str, entries: list[str], among: list[Gpu], note: str = "") -> list[Gpu]:
    picked: dict[str, Gpu] = {}
    for entry in entries:
        meant = [gpu for gpu in among if gpu.is_meant_by(entry)]
        if not meant:
            here = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in among) or "none"
            raise ConfigurationError(
                f"{setting}: there is no GPU {entry} here{note}; nvidia-smi lists: {here}. Choose among these."
            )
        picked |= {gpu.uuid: gpu for gpu in meant}
    return list(picked.values())
