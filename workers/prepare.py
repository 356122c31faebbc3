"""From a stored request to one that a family can run: pictures are read, LoRAs and embeddings are found on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models import AdapterFile, PreparedRequest
from models.checkpoints import locate_file
from polyreel.catalogue import Catalogue
from polyreel.entries import Adapter
from polyreel.errors import AdapterUnavailable, CheckpointUnavailable, GenerationFailed, StorageFailed
from polyreel.request import VideoRequest
from polyreel.storage import Storage


@dataclass(frozen=True)
class Preparer:
    """Brings what requests refer to onto this machine.

    Args:
        catalogue: where LoRAs and embeddings are named.
        storage: holds the pictures.
        folder: where tiny adapters are built.
    """

    catalogue: Catalogue
    storage: Storage
    folder: Path

    def prepare(self, request: VideoRequest) -> PreparedRequest:
        """Return the request with its pictures and files.

        Raises:
            AdapterUnavailable: a LoRA or embedding is not served any more, or its file is not on this machine.
            GenerationFailed: a picture is gone or cannot be read.
        """
        loras, embeddings = self.catalogue.loras, self.catalogue.embeddings
        return PreparedRequest(
            request,
            images=tuple(self._picture(image.key) for image in request.images),
            loras=tuple(self._file("LoRA", use.name, loras, use.strength) for use in request.loras),
            embeddings=tuple(self._file("embedding", name, embeddings) for name in request.embeddings),
        )

    def _picture(self, key: str) -> np.ndarray:
        from PIL import Image

        try:
            with self.storage.open(key) as file, Image.open(file) as picture:
                return np.asarray(picture.convert("RGB"))  # (height, width, 3), uint8
        except (StorageFailed, OSError, ValueError) as err:
            raise GenerationFailed("A picture of this job cannot be read any more; submit it again.") from err

    def _file(self, kind: str, name: str, adapters: dict[str, Adapter], strength: float = 1.0) -> AdapterFile:
        adapter = adapters.get(name)
        if adapter is None:
            raise AdapterUnavailable(f"The {kind} {name} is not served any more.")
        try:
            path = locate_file(adapter.checkpoint, adapter.revision, self.folder)
            second = locate_file(adapter.second, adapter.revision, self.folder) if adapter.second else None
        except CheckpointUnavailable as err:
            raise AdapterUnavailable(f"The {kind} {name} is not on this machine.") from err
        return AdapterFile(name, path, second, strength, adapter.token)
