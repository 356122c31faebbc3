"""What a worker's GPU is doing, by NVIDIA's own library: memory, load, temperature, power.

A reading may hang with the driver for minutes, so it runs in a thread of its own beside the keeper, which goes on
keeping leases meanwhile. Where there is no driver, or it does not say, nothing is told: this is for people and graphs.

Source: NVML API Reference Guide, "Device Queries"; the module `pynvml` of the package nvidia-ml-py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

#: Seconds between two readings.
EVERY_S = 2.0

#: A reading older than this is told no more: the driver hangs, seconds.
STALE_S = 15.0


def gpu_of(device: str, environment: Mapping[str, str]) -> str:
    """Return by which name NVML knows the GPU of a torch device: a UUID, or an index; "" for none.

    Args:
        device: "cuda" or "cuda:1"; anything else has no GPU of NVIDIA's.
        environment: of the worker; CUDA counts within CUDA_VISIBLE_DEVICES, NVML does not know of it. `polyreel.gpus`
            puts UUIDs there; an index counts by PCI bus, as NVML does.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return ""
    index = int(number or 0)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(index)
    entries = [entry.strip() for entry in visible.split(",")]
    return entries[index] if index < len(entries) else ""


def read_gpu(nvml: Any, name: str) -> dict[str, Any]:  # Any: a module without types; JSON
    """Return a reading as the heartbeat tells it; null for what this GPU does not say (a MIG instance has no load).

    Args:
        nvml: the module, initialised.
        name: see `gpu_of`.

    Raises:
        NVMLError: there is no such GPU, or it has fallen off the bus.
    """
    handle = nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)

    def asked(question: Callable[[], float]) -> float | None:
        with suppress(nvml.NVMLError):
            return question()
        return None

    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    milliwatts = asked(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    return {
        "name": str(nvml.nvmlDeviceGetName(handle)),
        "memory_total_bytes": int(memory.total),
        "memory_used_bytes": int(memory.used),
        "utilization_percent": asked(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "temperature_c": asked(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "power_w": None if milliwatts is None else round(milliwatts / 1000, 1),
    }


def nvml_module() -> Any:  # Any: a module without types
    """Return NVIDIA's library, ready to be asked; None where it or the driver is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


class GpuStats:
    """Reads one GPU every two seconds, for as long as this process lives.

    Args:
        name: see `gpu_of`; "" reads nothing.
        load: returns the library, or None; called in the thread that reads, because it may hang as well.
    """

    def __init__(self, name: str, load: Callable[[], Any] = nvml_module) -> None:
        self._name = name
        self._load = load
        self._newest: tuple[float, dict[str, Any] | None] = (0.0, None)
        self.is_over = threading.Event()

    def start(self) -> None:
        """Begin to read; nothing happens without a GPU."""
        if self._name:
            threading.Thread(target=self._read_on, name="gpu stats", daemon=True).start()

    @property
    def newest(self) -> dict[str, Any] | None:
        """The last reading; None when there is none, or none that is fresh."""
        read_at, reading = self._newest
        return reading if time.monotonic() - read_at <= STALE_S else None

    def _read_on(self) -> None:
        nvml = self._load()
        if nvml is None:
            return
        while True:
            try:
                self._newest = time.monotonic(), read_gpu(nvml, self._name)
            except nvml.NVMLError:  # it may come back, as after a reset
                self._newest = time.monotonic(), None
            if self.is_over.wait(EVERY_S):
                return
