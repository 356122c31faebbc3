"""What decides the bytes of a job: the request, the model, the device and the versions of what runs it."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from typing import Any

from models import AdapterFile, PreparedRequest
from models._origins import adapter_origin
from models.loaded import LoadedModel
from polyreel import __version__

#: What can change the bytes of a video besides the request and the model.
_LIBRARIES = ("torch", "diffusers", "transformers", "peft")

#: Facts of a loaded model that change no pixel, and its device, which is described more closely.
_NOT_IN_IDENTITY = ("device", "placement", "vae_slicing")


def identity(model: LoadedModel, prepared: PreparedRequest) -> str:
    """Return a digest of all that decides a job's bytes: with an equal one, a job may go on with another's state.

    Where weights live and which of several equal devices it is changes nothing, so both may differ.
    """
    facts = {
        "polyreel": __version__,
        "versions": _versions(),
        "device": _device(model.device),
        "model": {name: fact for name, fact in model.facts().items() if name not in _NOT_IN_IDENTITY},
        "request": prepared.request.to_dict(),
        "images": [[list(image.shape), hashlib.sha256(image.tobytes()).hexdigest()] for image in prepared.images],
        "adapters": [_adapter(file) for file in (*prepared.loras, *prepared.embeddings)],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    return {library: version(library) for library in _LIBRARIES}


def _adapter(file: AdapterFile) -> list[Any]:
    files = [file.path, file.second] if file.second else [file.path]
    return [file.name, file.strength, file.token, *file.aliases, *(adapter_origin(path) for path in files)]


def _device(device: str) -> list[Any]:
    """Return what tells a device from one that rounds otherwise."""
    import torch

    if device == "cpu":  # sums depend on the number of threads and on the instructions
        return ["cpu", torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]
    return [torch.device(device).type, torch.cuda.get_device_name(device)]
