"""What a GPU is doing, as the driver tells it; the driver's library is not ours, so a stand-in answers here."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from workers import gpu_stats, pace
from workers.gpu_stats import GpuStats, gpu_of, read_gpu
from workers.keeper import Keeper, Setup, State
from workers.pace import Pace

UUID = "GPU-bbbb0000-1111-2222-3333-444455556666"


class NVMLError(Exception):
    """As the library's own."""


class Nvml:
    """The functions of pynvml that are used, for a machine with two GPUs; asked for anything else it has no answer."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *silent: str) -> None:
        self.silent = set(silent)
        self.read = 0

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return self._said("handle", ["A", "B"][index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return self._said("handle", {UUID: "B"}[uuid])

    def nvmlDeviceGetName(self, handle: str) -> str:
        return {"A": "NVIDIA A100", "B": "NVIDIA H200"}[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        self.read += 1
        return SimpleNamespace(total=150_754_820_096, used=12_000_000_000, free=138_754_820_096)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        return self._said("load", SimpleNamespace(gpu=97, memory=40))

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return self._said("temperature", 64)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._said("power", 412_345)

    def _said(self, what: str, answer: Any) -> Any:
        if what in self.silent:
            raise NVMLError("Not Supported")
        return answer


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cpu", None, ""),
        ("mps", "0", ""),
        ("cuda", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda", UUID, UUID),
        ("cuda:1", f"0, {UUID}", UUID),
        ("cuda:0", "3", "3"),
        ("cuda:1", "3", ""),
        ("cuda", "", ""),
    ],
)
def test_the_driver_is_asked_for_the_gpu_that_the_worker_sees(device: str, visible: str | None, expected: str) -> None:
    assert gpu_of(device, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == expected


def test_a_reading_says_memory_load_heat_and_power() -> None:
    expected = {
        "name": "NVIDIA H200",
        "memory_total_bytes": 150_754_820_096,
        "memory_used_bytes": 12_000_000_000,
        "utilization_percent": 97,
        "temperature_c": 64,
        "power_w": 412.3,
    }
    assert read_gpu(Nvml(), UUID) == expected
    assert read_gpu(Nvml(), "1") == expected
    assert read_gpu(Nvml(), "0")["name"] == "NVIDIA A100"


def test_what_a_gpu_does_not_say_is_null_and_the_rest_stands() -> None:
    reading = read_gpu(Nvml("load", "power"), UUID)
    assert (reading["utilization_percent"], reading["power_w"]) == (None, None)
    assert (reading["temperature_c"], reading["memory_used_bytes"]) == (64, 12_000_000_000)


def until_read(stats: GpuStats) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while stats.newest is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return stats.newest


def test_it_is_read_again_and_again_and_a_gpu_that_is_gone_is_told_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_stats, "EVERY_S", 0.01)
    nvml = Nvml("handle")
    stats = GpuStats(UUID, lambda: nvml)
    stats.start()
    assert stats.newest is None
    nvml.silent.clear()
    assert until_read(stats)["name"] == "NVIDIA H200"
    nvml.silent.add("handle")
    deadline = time.monotonic() + 60
    while stats.newest is not None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    stats.is_over.set()


def fail() -> None:
    raise NVMLError("Driver Not Loaded")


@pytest.mark.parametrize("library", [None, SimpleNamespace(NVMLError=NVMLError, nvmlInit=fail)])
def test_a_machine_without_library_or_driver_tells_nothing_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, library: object
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    stats = GpuStats("0")
    stats._read_on()
    assert stats.newest is None


def test_a_worker_on_the_cpu_never_loads_the_library() -> None:
    loaded = threading.Event()
    GpuStats("", loaded.set).start()
    assert not loaded.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "gpu stats"]


def test_a_driver_that_hangs_holds_up_no_heartbeat_and_its_last_word_grows_old(
    monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    hangs, nvml = threading.Event(), Nvml()
    keeper = Keeper(Setup(redis_url, "one", 0, retention_s=60, lease_s=10), lambda lost: None)
    keeper.gpu = GpuStats(UUID, lambda: hangs.wait() and nvml)
    keeper.gpu.start()
    assert keeper._beat()
    keeper.gpu._newest = time.monotonic(), {"name": "NVIDIA H200"}
    assert keeper.gpu.newest == {"name": "NVIDIA H200"}
    keeper.gpu._newest = time.monotonic() - gpu_stats.STALE_S - 1, {"name": "NVIDIA H200"}
    assert keeper.gpu.newest is None
    keeper.gpu.is_over.set()
    hangs.set()


def test_the_heartbeat_has_both_measurements_beside_what_the_worker_says(redis_url: str) -> None:
    keeper = Keeper(Setup(redis_url, "one", 0, retention_s=60, lease_s=10), lambda lost: None)
    keeper.take(State(about={"device": "cpu", "succeeded": 0}).to_line())
    keeper.take(State(about={"device": "cpu", "succeeded": 3}).to_line())
    keeper._beat()
    said = keeper.leases.client.get("polyreel:worker:one")
    assert '"device": "cpu"' in said
    assert '"gpu": null' in said
    assert '"jobs_per_minute": 3.0' in said


def test_the_pace_is_the_mean_of_ten_minutes_and_forgets_what_is_older(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    mine = Pace()
    mine.note(7)  # a keeper that replaces another counts from here
    assert mine.per_minute == 0
    mine.note(9)
    assert mine.per_minute == 2.0  # as if a minute had passed
    now += 300
    assert mine.per_minute == 0.4
    mine.note(10)
    now += 299
    assert mine.per_minute == 0.301
    now += 2
    assert mine.per_minute == 0.1
    now += 600
    assert mine.per_minute == 0
