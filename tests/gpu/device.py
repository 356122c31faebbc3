"""The device that these tests run on, and what they read off it.

With POLYREEL_GPU_TESTS_ON_CPU=1 that is the CPU, with tiny checkpoints and sizes in the place of the published ones:
it shows that the tests themselves run, and nothing about CUDA.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

# Read at import: before each test the suite takes POLYREEL_* out of the environment.
ON_CPU = os.environ.get("POLYREEL_GPU_TESTS_ON_CPU") == "1"
DEVICE = "cpu" if ON_CPU else "cuda"

#: File that the tables are written to as well, None for the terminal alone.
REPORT = Path(os.environ["POLYREEL_GPU_REPORT"]) if os.environ.get("POLYREEL_GPU_REPORT") else None

#: Bytes by which memory may differ from round to round: a tiny model has about a megabyte of weights.
SLACK_BYTES = 50_000 if ON_CPU else 50_000_000


def name() -> str:
    """Return what the device calls itself, and the version of torch."""
    import torch

    return f"{'CPU' if ON_CPU else torch.cuda.get_device_name()}, torch {torch.__version__}"


def synchronize() -> None:
    """Wait until everything that was asked of the device is done."""
    import torch

    if not ON_CPU:
        torch.cuda.synchronize()


def allocated_bytes() -> int:
    """Return the bytes of all tensors that are alive on the device."""
    import torch

    gc.collect()
    if not ON_CPU:
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated())
    # `type`, not `isinstance`: that one asks lazy modules for their class, which imports them.
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def forget_peak() -> None:
    """Give back cached memory, and begin anew to look for the highest use."""
    import torch

    gc.collect()
    if not ON_CPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    """Return the most bytes of tensors at one time since `forget_peak`, None on the CPU."""
    import torch

    return None if ON_CPU else int(torch.cuda.max_memory_allocated())
