"""Which GPUs there are, and how many workers run where; `nvidia-smi` is a script that prints what the real one does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from polyreel.errors import ConfigurationError
from polyreel.gpus import GpusUnknown, installed_gpus, places
from polyreel.profiles import load_settings

THREE = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa0000-1111-2222-3333-444455556666)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb0000-1111-2222-3333-444455556666)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-cccc0000-1111-2222-3333-444455556666)
"""
A = "GPU-aaaa0000-1111-2222-3333-444455556666"
B = "GPU-bbbb0000-1111-2222-3333-444455556666"
C = "GPU-cccc0000-1111-2222-3333-444455556666"

#: NVIDIA Multi-Instance GPU User Guide, with a second GPU that is whole.
CUT = """\
GPU 0: A100-SXM4-40GB (UUID: GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 3g.20gb     Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
GPU 1: A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a maker of the only program on PATH; before it is called there is none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(prints: str, code: int = 0) -> None:
        (folder / "listing").write_text(prints)
        script = f'#!/bin/sh\n[ "$1" = -L ] || exit 2\n/bin/cat {folder}/listing\nexit {code}\n'
        (folder / "nvidia-smi").write_text(script)
        (folder / "nvidia-smi").chmod(0o755)

    return make


def slots(said: list[str] | None = None, **settings: object) -> dict[str, dict[str, str]]:
    """Return where workers run, by slot, with these settings and our own environment."""
    heard = [] if said is None else said
    chosen = places(load_settings(**({"device": "auto"} | settings)).settings, os.environ, heard.append)
    return {place.slot: dict(place.environment) for place in chosen}


def refusal(**settings: object) -> str:
    with pytest.raises(ConfigurationError) as refused:
        slots(**settings)
    return str(refused.value)


def on(uuid: str) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.usefixtures("nvidia_smi")
def test_a_machine_without_nvidia_smi_has_one_worker_that_finds_its_device_itself() -> None:
    assert installed_gpus() == []
    assert slots() == {"1": {}}
    assert slots(workers=2) == {"1": {}, "2": {}}


def test_every_gpu_gets_a_worker_that_sees_no_other(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(THREE)
    assert slots() == {"gpu0": on(A), "gpu1": on(B), "gpu2": on(C)}
    assert slots(device="cuda") == {"gpu0": on(A), "gpu1": on(B), "gpu2": on(C)}


def test_several_workers_may_share_a_gpu(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(THREE)
    assert slots(gpus="2", workers=2) == {"gpu2-1": on(C), "gpu2-2": on(C)}


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ("0,2", {"gpu0": on(A), "gpu2": on(C)}),
        ([2, 0], {"gpu2": on(C), "gpu0": on(A)}),
        (1, {"gpu1": on(B)}),
        (" 1 , 2 ", {"gpu1": on(B), "gpu2": on(C)}),
        (f"{B},GPU-aaaa", {"gpu1": on(B), "gpu0": on(A)}),
        ("0,GPU-aaaa", {"gpu0": on(A)}),
        ("none", {"1": {"CUDA_VISIBLE_DEVICES": ""}}),
    ],
)
def test_gpus_are_chosen_by_index_or_uuid(nvidia_smi: Callable[..., None], gpus: object, expected: object) -> None:
    nvidia_smi(THREE)
    assert slots(gpus=gpus) == expected


def test_an_instance_of_a_gpu_is_a_gpu_of_its_own(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(CUT)
    first = on("MIG-c7384736-a75d-5afc-978f-d2f1294409fd")
    second = on("MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d")
    whole = on("GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77")
    assert slots() == {"gpu0.0": first, "gpu0.1": second, "gpu1": whole}
    assert slots(gpus="0") == {"gpu0.0": first, "gpu0.1": second}
    assert slots(gpus="GPU-e86cb44c") == {"gpu0.0": first, "gpu0.1": second}
    assert slots(gpus="MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d,1") == {"gpu0.1": second, "gpu1": whole}


def test_a_uuid_that_cuda_does_not_take_is_replaced_by_the_index(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi("GPU 0: Orin (nvgpu) (UUID: 54d3dd25-0000-0000-0000-000000000000)\n")
    assert slots() == {"gpu0": on("0")}


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("2,0", {"gpu2": on(C), "gpu0": on(A)}),
        ("GPU-bbbb0000", {"gpu1": on(B)}),
        ("1,-1,2", {"gpu1": on(B)}),
        ("-1", {"1": {}}),
        ("", {"1": {}}),
    ],
)
def test_what_cuda_visible_devices_hides_gets_no_worker(
    nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch, visible: str, expected: object
) -> None:
    nvidia_smi(THREE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert slots() == expected


def test_a_gpu_that_is_asked_for_and_not_there_is_named(
    nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(gpus="0") == ("gpus: there is no GPU 0 here; nvidia-smi lists: none. Choose among these.")
    nvidia_smi(THREE)
    assert refusal(gpus="0,7") == (
        f"gpus: there is no GPU 7 here; nvidia-smi lists: 0 ({A}), 1 ({B}), 2 ({C}). Choose among these."
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert refusal(gpus="2") == (
        "gpus: there is no GPU 2 here (CUDA_VISIBLE_DEVICES=1 hides others); "
        f"nvidia-smi lists: 1 ({B}). Choose among these."
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert refusal().startswith("CUDA_VISIBLE_DEVICES: there is no GPU 5 here; nvidia-smi lists: 0 (")


def test_a_device_that_is_no_matter_of_choice_has_one_worker_and_refuses_a_choice(
    nvidia_smi: Callable[..., None],
) -> None:
    nvidia_smi(THREE)
    assert slots(device="cpu", workers=2) == {"1": {}, "2": {}}
    assert slots(device="cuda:1") == {"1": {}}
    assert refusal(device="cpu", gpus="0") == (
        "gpus: 0 was asked for, and device: cpu means something else. "
        "Set device to auto or cuda, or gpus to all (the default)."
    )
    assert refusal(device="cuda:1", gpus="1").startswith("gpus: 1 was asked for, and device: cuda:1 means")
    assert refusal(device="cuda", gpus="none") == "gpus: none, and device: cuda needs one. Change either."


def test_a_driver_without_devices_means_none(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi("No devices were found", code=6)
    assert slots() == {"1": {}}


def test_a_driver_that_does_not_work_is_said_and_stops_only_who_asked_for_a_gpu(
    nvidia_smi: Callable[..., None], tmp_path: Path
) -> None:
    nvidia_smi("Failed to initialize NVML: Driver/library version mismatch", code=18)
    trouble = (
        f"{tmp_path}/bin/nvidia-smi -L ended with exit code 18 and said: "
        "Failed to initialize NVML: Driver/library version mismatch"
    )
    with pytest.raises(GpusUnknown) as unknown:
        installed_gpus()
    assert str(unknown.value) == trouble
    said: list[str] = []
    assert slots(said) == {"1": {}}
    assert said == [f"{trouble} Starting without counting GPUs; gpus: none says that this is meant."]
    assert refusal(gpus="0") == f"gpus: 0 was asked for, and what is here is not known: {trouble}"


@pytest.mark.parametrize("gpus", ["some", "0,,1", "-1", "all,0", "0;1", "GPU-", True, [], ["none", "none"]])
def test_gpus_that_are_none_are_refused_with_the_forms_that_there_are(gpus: object) -> None:
    assert refusal(gpus=gpus).startswith("gpus: use all, none, or GPUs as nvidia-smi -L lists them: ")


def test_a_gpu_that_comes_twice_is_told_of_the_setting_for_that() -> None:
    assert refusal(gpus="0,1,0").startswith("gpus: a GPU comes twice; `workers` starts several processes on each")
