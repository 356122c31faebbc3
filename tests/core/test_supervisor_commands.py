"""`polyreel worker` with one worker: it becomes that worker, on its GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyreel.cli import app

UUID = "GPU-bbbb0000-1111-2222-3333-444455556666"


class Replaced(Exception):
    """Raised in the place of what a process becomes."""


@pytest.fixture
def becomes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Collect the command lines that this process is to be replaced by; the machine has two GPUs."""
    lines: list[list[str]] = []

    def execv(_path: str, words: list[str]) -> None:
        lines.append(words)
        raise Replaced

    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho 'GPU 0: X (UUID: GPU-aaaa)\nGPU 1: X (UUID: {UUID})'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("REDIS_URL", "redis://queue.test:6379/0")
    monkeypatch.setattr(os, "execv", execv)
    # Whatever the command sets in our own environment goes with the test.
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return lines


def run(*words: str) -> None:
    result = CliRunner().invoke(app, ["worker", *words])
    assert isinstance(result.exception, Replaced), result.output


def test_a_single_worker_runs_in_place_and_sees_its_gpu_alone(becomes: list[list[str]]) -> None:
    run("--device", "cuda", "--gpus", "1")
    assert becomes == [[sys.executable, "-P", "-m", "workers", "--device=cuda"]]
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == (UUID, "PCI_BUS_ID")


def test_a_worker_on_the_cpu_runs_in_place_as_ever(becomes: list[list[str]]) -> None:
    run("--device", "cpu")
    assert becomes == [[sys.executable, "-P", "-m", "workers", "--device=cpu"]]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
