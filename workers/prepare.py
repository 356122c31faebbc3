"""From a stored request to one that a family can run: pictures are read, LoRAs and embeddings are found on disk.

A name in a request is only ever looked up in the catalogue; what is opened is what the operator wrote there, or a
picture under a key of ours.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from models import AdapterFile, PreparedRequest
from models.checkpoints import locate_file
from polyreel.catalogue import Catalogue
from polyreel.entries import Adapter
from polyreel.errors import AdapterUnavailable, CheckpointUnavailable, GenerationFailed, StorageAway
from polyreel.request import VideoRequest
from polyreel.storage import Storage

if TYPE_CHECKING:
    from PIL.Image import Image

#: Largest picture that is decoded: 3 bytes per pixel, and no model looks at more than a few million.
MAX_PIXELS = 50_000_000

#: Pillow's names of the formats that are read. Not all that it knows: some hand the file to other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


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
            GenerationFailed: a picture is gone, damaged, of an unknown format, or larger than `MAX_PIXELS`.
            StorageAway: nobody knows: try again later.
        """
        loras, embeddings = self.catalogue.loras, self.catalogue.embeddings
        return PreparedRequest(
            request,
            images=tuple(self._picture(image.key) for image in request.images),
            loras=tuple(self._file("LoRA", use.name, loras, use.strength) for use in request.loras),
            embeddings=tuple(self._file("embedding", name, embeddings) for name in request.embeddings),
        )

    def _picture(self, key: str) -> np.ndarray:
        try:
            with self.storage.open(key) as file:
                return read_picture(file)
        except StorageAway:
            raise  # the picture may be there when the storage is
        except TooManyPixels as err:
            raise GenerationFailed(f"A picture of this job has {err}; send a smaller one.") from err
        except Exception as err:  # it was removed, and a dozen kinds for damaged files of one format or another
            raise GenerationFailed("A picture of this job cannot be read any more; submit it again.") from err

    def _file(self, kind: str, name: str, adapters: dict[str, Adapter], strength: float = 1.0) -> AdapterFile:
        adapter = adapters.get(name)
        if adapter is None:
            raise AdapterUnavailable(f"The {kind} {name} is not served any more; choose another.")
        try:
            path = locate_file(adapter.checkpoint, adapter.revision, self.folder)
            second = locate_file(adapter.second, adapter.revision, self.folder) if adapter.second else None
        except CheckpointUnavailable as err:
            # The cause names paths and the command that fetches the file, which are for the operator alone.
            raise AdapterUnavailable(
                f"The {kind} {name} is not on this machine; choose another until it has been fetched."
            ) from err
        return AdapterFile(name, path, second, strength, adapter.token, _aliases(adapter, path))


def _aliases(adapter: Adapter, path: Path) -> tuple[str, ...]:
    """Return the words beside its token by which prompts may mean a textual inversion, none for a LoRA.

    Clients write what they know: the name under which they ask for it, with or without the file's ending, or the
    file's own name.
    """
    if not adapter.token:
        return ()
    names = [name for public in adapter.names.values() for name in public]
    words = [*names, *(name.removesuffix(".safetensors") for name in names), path.stem]
    return tuple(word for word in dict.fromkeys(words) if word.lower() != adapter.token.lower())


class TooManyPixels(Exception):
    """Raised before a picture of more than `MAX_PIXELS` is decoded; the text continues "It has"."""


def read_picture(file: BinaryIO) -> np.ndarray:
    """Decode a picture into what a viewer shows; see `as_rgb`.

    Raises:
        TooManyPixels: nothing was decoded.
        PIL.UnidentifiedImageError: it is of none of `FORMATS`.
        Exception: what Pillow raises for damaged files, a dozen kinds.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own limit of pixels; ours comes before decoding too
            with Image.open(file, formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    size = f"{width} x {height} = {width * height}"
                    raise TooManyPixels(f"{size} pixels, and at most {MAX_PIXELS} are read")
                return as_rgb(picture)
    except Image.DecompressionBombError as err:  # beyond twice Pillow's own limit, at the header
        raise TooManyPixels(f"more than {MAX_PIXELS} pixels") from err


def as_rgb(picture: Image) -> np.ndarray:
    """Return what a viewer shows: turned as EXIF says, on white where it is transparent, 8 bits per channel.

    White, because that is the page on which transparent pictures are drawn; without a background Pillow would show
    the colours that lie under the transparency, which nobody has ever seen. Of an animation, the first frame.

    Returns:
        uint8 of shape (height, width, 3), its own memory.
    """
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # one channel of 16 bits, which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))  # (height, width, 3), uint8
