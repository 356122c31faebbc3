"""The memory of the device that a worker's models share: what is free, what a job takes, and giving it back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

from polyreel.admission import RESERVED_BYTES, Size, memory_bytes, weights_bytes
from polyreel.entries import ServedModel

#: Returns the bytes of a device that are free for weights and work, and those that it has in all; None for a device
#: whose memory is not counted.
DeviceMemory = Callable[[str], tuple[int, int] | None]


def device_memory(device: str) -> tuple[int, int] | None:
    """Return a GPU's free bytes, less what its libraries take while they work, and all bytes; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    free_memory()  # torch keeps what was freed, and the driver counts that as used
    free, total = torch.cuda.mem_get_info(device)
    return max(0, free - RESERVED_BYTES), total


def working_bytes(entry: ServedModel) -> int:
    """Return what a job of an entry's default size takes beside the weights; 0 when its cost is not known."""
    resident = entry.placement.model_copy(update={"mode": "resident"})
    size = Size(entry.defaults.num_frames, entry.defaults.height, entry.defaults.width)
    return memory_bytes(entry, size, resident) - weights_bytes(entry, resident)


def let_go(err: BaseException | None) -> None:
    """Drop the tracebacks of an error and its causes: their frames hold the tensors of the failed call."""
    for link in chain(err):
        link.__traceback__ = None


def chain(err: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it, each once: an exception that is raised twice can be its own context."""
    seen: set[int] = set()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        yield err
        err = err.__cause__ or err.__context__


def free_memory() -> None:
    """Give back what no pipeline holds any more."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
