"""What a snapshot of a call looks like as bytes: safe to read, and refused when a single bit of it is wrong.

    b"polyreel snapshot 1\\n"   32 bytes: sha256 of the rest   8 bytes: length of the header, little endian
    header: JSON               the tensors as safetensors

The header holds a tree of plain values in which tensors are numbers. Nothing in it is code, so a snapshot that somebody
else wrote can at worst be refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_MAGIC = b"polyreel snapshot 1\n"
_SHA256_BYTES, _LENGTH_BYTES = 32, 8
_HEADER_START = len(_MAGIC) + _SHA256_BYTES + _LENGTH_BYTES

Tensor = Any  # torch is imported lazily

#: Any: None, bool, int, float, str, tensor, NumPy array or number, or list, tuple or dict (by str) of these.
Tree = Any


class NotPlain(ValueError):
    """Raised for a value that a snapshot cannot hold."""


class Unreadable(ValueError):
    """Raised for bytes that are no whole snapshot of this format."""


@dataclass(frozen=True)
class _Copied:
    """A tensor in this process's memory, and whether it belongs on the model's device."""

    tensor: Tensor
    on_device: bool


def copied(value: Tree) -> Tree:
    """Return a copy that nothing changes any more, tensors on the CPU; takes no longer than copying them.

    Raises:
        NotPlain: a value is of another kind.
    """
    import torch

    if value is None or type(value) in (bool, int, float, str):  # exactly: NumPy's numbers are kinds of float, too
        return value
    if isinstance(value, torch.Tensor):
        copy = value.detach().to("cpu", copy=True).contiguous()
        return _Copied(copy, on_device=value.device.type != "cpu")
    if isinstance(value, np.ndarray | np.generic):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(copied(one) for one in value)
    if type(value) is dict and all(isinstance(name, str) for name in value):
        return {name: copied(one) for name, one in value.items()}
    raise NotPlain(f"{type(value).__name__} is no plain value")


def pack(identity: str, tree: Tree) -> bytes:
    """Return a snapshot.

    Args:
        identity: of what it is a snapshot of; only the same may read it.
        tree: from `copied`.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    header = json.dumps({"identity": identity, "tree": _encode(tree, tensors)}).encode()
    rest = len(header).to_bytes(_LENGTH_BYTES, "little") + header + save(tensors)
    return _MAGIC + hashlib.sha256(rest).digest() + rest


def unpack(content: bytes, device: str) -> tuple[str, Tree]:
    """Return the identity and the tree of a snapshot.

    Args:
        device: where tensors go that were not on the CPU.

    Raises:
        Unreadable: damaged, cut off, or of another format.
    """
    from safetensors.torch import load

    if not is_whole(content):
        raise Unreadable("it is damaged, cut off, or of another format")
    start = _HEADER_START
    end = start + int.from_bytes(content[start - _LENGTH_BYTES : start], "little")
    try:
        header, tensors = json.loads(content[start:end]), load(content[end:])
        return header["identity"], _decode(header["tree"], tensors, device)
    except Exception as err:  # json and safetensors raise half a dozen kinds
        raise Unreadable(f"its content cannot be read: {err}") from err


def is_whole(content: bytes) -> bool:
    """Return whether bytes are a snapshot of this format with nothing missing or changed."""
    if len(content) < _HEADER_START or not content.startswith(_MAGIC):
        return False
    rest = len(_MAGIC) + _SHA256_BYTES
    return hashlib.sha256(memoryview(content)[rest:]).digest() == content[len(_MAGIC) : rest]


def _encode(value: Tree, tensors: dict[str, Tensor]) -> Any:
    """Return a tree as JSON; its tensors and arrays go into `tensors` by number."""
    import torch

    def keep(tensor: Tensor) -> str:
        number = str(len(tensors))
        tensors[number] = tensor
        return number

    if isinstance(value, _Copied):
        return {"tensor": keep(value.tensor), "on_device": value.on_device}
    if isinstance(value, np.generic):
        return {"number": keep(torch.from_numpy(np.asarray(value)))}
    if isinstance(value, np.ndarray):
        return {"array": keep(torch.from_numpy(np.ascontiguousarray(value)))}
    if isinstance(value, list):
        return [_encode(one, tensors) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(one, tensors) for one in value]}
    if isinstance(value, dict):
        return {"dict": {name: _encode(one, tensors) for name, one in value.items()}}
    return value


def _decode(value: Any, tensors: dict[str, Tensor], device: str) -> Tree:
    """Return what `_encode` was given."""
    if isinstance(value, list):
        return [_decode(one, tensors, device) for one in value]
    if not isinstance(value, dict):
        return value
    kind, content = next(iter(value.items()))
    kinds: dict[str, Callable[[], Tree]] = {
        "tensor": lambda: tensors[content].to(device) if value["on_device"] else tensors[content],
        "number": lambda: tensors[content].numpy()[()],
        "array": lambda: tensors[content].numpy(),
        "tuple": lambda: tuple(_decode(one, tensors, device) for one in content),
        "dict": lambda: {name: _decode(one, tensors, device) for name, one in content.items()},
    }
    return kinds[kind]()
