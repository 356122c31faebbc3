"""Pictures that clients send: decoded strictly, looked at before any job is acknowledged, kept under their digest.

Knows no dialect, and fetches nothing: `server.fetching` does. A picture is stored as it came, once its request is
otherwise admitted: the worker decodes it again, turned as its EXIF says, and a key that is its content's digest lets
identical requests find each other in the result cache.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polyreel.errors import InvalidRequest, StorageFailed, UnusablePicture
from polyreel.request import picture_key
from polyreel.storage import Storage

#: Longest body of a route that takes pictures, bytes: a photograph of 15 MB in base64.
MAX_BODY_BYTES = 20 * 2**20

#: Largest picture, bytes and pixels. Decoding takes 3 bytes a pixel; no model looks at more than 2 million.
MAX_BYTES = 15_000_000
MAX_PIXELS = 25_000_000

#: Pictures that one process decodes at the same time: what they take together stays below 300 MB.
MAX_AT_ONCE = 2

#: Scans of one JPEG. Encoders write ten at most; 64 bytes of another cost 20 ms on 25 million pixels, and 15 MB of them
#: more than an hour.
_MOST_SCANS = 50
_SCAN = b"\xff\xda"

#: Formats that are taken, by Pillow's names.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

_DATA_URL = re.compile(r"data:image/[\w.+-]+(;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_EXPECTED = "must be a picture in base64 or an https:// link to one"
_URL_SAFE = str.maketrans("-_", "+/")

#: EXIF's tag, and its values for pictures that lie on their side.
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Picture:
    """A picture that can be decoded, not stored yet.

    Args:
        key: under which it is to be stored.
        content: the file as it came.
        width, height: pixels as it is to be seen, turned as its EXIF says.
    """

    key: str
    content: bytes
    width: int
    height: int

    def store(self, storage: Storage) -> None:
        """Store the picture; blocks.

        Raises:
            StorageFailed: it could not be stored.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture"
            path.write_bytes(self.content)
            storage.put(path, self.key)  # also when it is there: the sweeper goes by the time of the last use

    def restore(self, storage: Storage) -> None:
        """Store it once more if it has gone again; blocks.

        Between `store` and the submit that names it, the last job that used the same picture may have been deleted, and
        the file with it. A storage that is away now has it, as far as anybody knows.
        """
        with suppress(StorageFailed):
            if storage.size(self.key) is None:
                self.store(storage)


def read_picture(field: str, text: str) -> Picture:
    """Check a picture in base64; blocks, and takes as much memory as its pixels.

    Args:
        field: dotted path for messages.
        text: base64, plain or URL-safe, with or without padding, white space or a `data:image/…;base64,` in front.

    Raises:
        InvalidRequest: not base64.
        UnusablePicture: not a picture of a known format, damaged, or too large.
    """
    return check_picture(field, decode(field, text))


def check_picture(field: str, content: bytes) -> Picture:
    """As `read_picture`, for a file as it is.

    Raises:
        UnusablePicture: not a picture of a known format, damaged, or too large.
    """
    _check_length(field, len(content))
    width, height = look_at(field, content)
    return Picture(picture_key(content), content, width, height)


def is_link(text: str) -> bool:
    """Return whether a text is a URL, of whatever scheme, and neither base64 nor a data URL."""
    return "://" in text[:40]


def decode(field: str, text: str) -> bytes:
    """Return the bytes of a text in base64.

    Raises:
        InvalidRequest: says what came instead.
    """
    head = _DATA_URL.match(text)
    bare = "".join(text[head.end() if head else 0 :].split()).translate(_URL_SAFE).rstrip("=")
    _check_length(field, len(bare) * 3 // 4)  # before it takes that much memory
    try:
        content = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{field} {_EXPECTED}, got text that is neither", field) from None
    if not content:
        raise InvalidRequest(f"{field} {_EXPECTED}, got nothing", field)
    return content


def _check_length(field: str, length: int) -> None:
    if length > MAX_BYTES:
        raise UnusablePicture(f"{field} must be a picture of at most {MAX_BYTES} bytes, got {length}", field, "bytes")


def look_at(field: str, content: bytes) -> tuple[int, int]:
    """Let a picture pass that can be decoded whole; return width and height as it is to be seen, pixels.

    Raises:
        UnusablePicture: names the size or the formats that are taken.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own, lower limit; ours is asked before anything is decoded
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise UnusablePicture(
                        f"{field} must have at most {MAX_PIXELS} pixels, got {width}x{height} = {width * height}",
                        field,
                        "pixels",
                    )
                if picture.format == "JPEG" and content.count(_SCAN) > _MOST_SCANS:
                    raise UnusablePicture(
                        f"{field} is a JPEG of more than {_MOST_SCANS} scans; save it anew", field, "format"
                    )
                picture.load()
                is_turned = picture.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
                return (height, width) if is_turned else (width, height)
    except UnidentifiedImageError:
        raise UnusablePicture(
            f"{field} must be a picture ({', '.join(_FORMATS)}), got something else", field, "format"
        ) from None
    except Image.DecompressionBombError:  # beyond Pillow's own limit, which comes first
        raise UnusablePicture(
            f"{field} must have at most {MAX_PIXELS} pixels, got many times more", field, "pixels"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, struct.error):
        # What Pillow raises for damaged files of one format or another.
        raise UnusablePicture(f"{field} is a damaged picture; send it again whole", field, "format") from None
